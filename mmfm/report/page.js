// What the page adds when scripts run: read-outs on charts and maps, sortable tables, compact players. All of it is also there without.
"use strict";

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

for (const figure of document.querySelectorAll("[data-chart]")) {
  const { last, series } = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const cross = element("div", { className: "cross", hidden: true });
  const told = element("div", { className: "told-box", hidden: true });
  const steps = [...new Set(series.flatMap(([, points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  let at = steps.length - 1;
  plot.append(cross, told);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", "Chart; the arrow keys read its values step by step");
  told.setAttribute("aria-live", "polite");

  const nearest = (points, step) => points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
  const show = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const share = steps[at] / last;
    cross.hidden = told.hidden = false;
    cross.style.left = `${100 * share}%`;
    const rows = series.map(([name, points], i) => {
      const mark = element("i", { className: `c${i % 6}` });
      return element("div", {}, ...(series.length > 1 ? [mark] : []), element("span", { textContent: name }), element("b", { textContent: nearest(points, steps[at])[1] }));
    });
    told.replaceChildren(element("div", {}, element("span", { textContent: `step ${steps[at].toLocaleString("en")}` })), ...rows);
    const room = 14, width = told.offsetWidth, left = share * plot.offsetWidth;
    told.style.left = `${left + room + width < plot.offsetWidth || left < width + room ? Math.min(left + room, Math.max(0, document.documentElement.clientWidth - plot.getBoundingClientRect().left - width - 8)) : left - width - room}px`;
  };
  const hide = () => { cross.hidden = told.hidden = true; };
  const moved = (event) => {
    const box = plot.getBoundingClientRect();
    const step = last * (event.clientX - box.left) / box.width;
    show(steps.indexOf(steps.reduce((best, other) => Math.abs(other - step) < Math.abs(best - step) ? other : best)));
  };
  plot.addEventListener("pointermove", moved);
  plot.addEventListener("pointerdown", moved);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(at); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const jump = { ArrowRight: 1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -steps.length, End: steps.length }[event.key];
    if (event.key === "Escape") hide();
    if (!jump) return;
    event.preventDefault();
    show(at + jump);
  });
}

for (const figure of document.querySelectorAll(".confusion")) {
  const told = figure.querySelector(".told");
  figure.querySelector(".heat")?.addEventListener("pointermove", (event) => {
    told.textContent = event.target.querySelector?.(":scope > title")?.textContent ?? "\u00a0";
  });
}

for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = element("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => sign * value(a, column).localeCompare(value(b, column), "en", { numeric: true }));
      const numbers = rows.filter((row) => "value" in row.cells[column].dataset);
      numbers.sort((a, b) => sign * (Number(value(a, column)) - Number(value(b, column))));
      body.append(...(numbers.length ? [...numbers, ...rows.filter((row) => !numbers.includes(row))] : rows));
    });
  });
}

for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio");
  const outline = sound.querySelector("svg");
  if (!outline) continue;
  const button = element("button", { type: "button" }, element("span", { className: "sign" }), outline, sound.querySelector(".length"));
  button.setAttribute("aria-label", `Play ${audio.getAttribute("aria-label")}`);
  audio.controls = false;
  audio.hidden = true;
  sound.prepend(button);
  const follow = () => {
    sound.style.setProperty("--done", `${audio.duration ? 100 * audio.currentTime / audio.duration : 0}%`);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  button.addEventListener("click", () => { if (audio.paused) audio.play(); else audio.pause(); });
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    sound.classList.add("playing");
    follow();
  });
  audio.addEventListener("pause", () => sound.classList.remove("playing"));
  audio.addEventListener("ended", () => { audio.currentTime = 0; follow(); });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) Object.assign(details, { open: true }).dataset.shut = "";
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-shut]")) details.open = false;
});
