"""What GPUs can do by their makers' data sheets: dense products a second, memory and its bandwidth, links between them.

Peaks are of dense matrices, without sparsity. Sources, by name of the sheet: NVIDIA H100, H200, A100, B200 (DGX B200,
one of eight), L40S, L4 and GeForce RTX 4090 (Ada white paper, appendix A); AMD Instinct MI300X.
"""

from dataclasses import dataclass

from mmfm.config import require

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """bf16, tf32, fp32: FLOP/s of products; fp16's are bf16's. bandwidth, link: bytes/s of its memory, and that it
    sends to others of its machine."""

    name: str
    bf16: float
    tf32: float
    fp32: float
    memory: float
    bandwidth: float
    link: float

    def peak(self, precision: str, tf32: bool = False) -> float:
        """FLOP/s of products in a run's precision. tf32: whether those of fp32 may be rounded to it."""
        return self.bf16 if precision in ("bf16", "fp16") else self.tf32 if tf32 else self.fp32


def _made(
    name: str, bf16: float, tf32: float, fp32: float, gigabytes: float, bandwidth: float, link: float
) -> Accelerator:
    peaks = {"bf16": bf16 * TERA, "tf32": tf32 * TERA, "fp32": fp32 * TERA}
    return Accelerator(name=name, memory=gigabytes * GIGA, bandwidth=bandwidth * GIGA, link=link * GIGA, **peaks)


KNOWN = {
    made.name: made
    for made in (
        _made("b200", 2_250.0, 1_125.0, 75.0, 180.0, 8_000.0, 900.0),
        _made("h200", 989.4, 494.7, 66.9, 141.0, 4_800.0, 450.0),
        _made("h100", 989.4, 494.7, 66.9, 80.0, 3_350.0, 450.0),
        _made("h100-pcie", 756.0, 378.0, 51.2, 80.0, 2_000.0, 64.0),
        _made("a100", 312.0, 156.0, 19.5, 80.0, 2_039.0, 300.0),
        _made("a100-40gb", 312.0, 156.0, 19.5, 40.0, 1_555.0, 300.0),
        _made("l40s", 362.0, 183.0, 91.6, 48.0, 864.0, 32.0),
        _made("l4", 121.0, 60.0, 30.3, 24.0, 300.0, 32.0),
        _made("rtx4090", 165.2, 82.6, 82.6, 24.0, 1_008.0, 32.0),
        _made("mi300x", 1_307.4, 653.7, 163.4, 192.0, 5_300.0, 448.0),
    )
}
# What a driver calls them, the longer names first.
CALLED = {
    "B200": "b200",
    "H200": "h200",
    "H100 PCIe": "h100-pcie",
    "H100": "h100",
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb",
    "A100": "a100",
    "L40S": "l40s",
    "NVIDIA L4": "l4",
    "RTX 4090": "rtx4090",
    "MI300X": "mi300x",
}


def accelerator(name: str) -> Accelerator:
    """By the name that people give. UserError: one that is not known here."""
    found = KNOWN.get(name.lower())
    require(found is not None, f"device {name!r} is not known; give one of {', '.join(KNOWN)}")
    assert found is not None
    return found


def called(driver_name: str) -> Accelerator | None:
    """By what its driver calls it, such as "NVIDIA H100 80GB HBM3"; None: not known here."""
    return next((KNOWN[name] for part, name in CALLED.items() if part in driver_name), None)
