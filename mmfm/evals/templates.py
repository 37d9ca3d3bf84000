"""Sentences and names that zero-shot classes are made of; those of open_clip are taken from it when asked for."""


def openai_imagenet() -> tuple[str, ...]:
    """CLIP's 80 sentences for ImageNet, with {} for the name (arXiv 2103.00020, 3.1.4)."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def simple_imagenet() -> tuple[str, ...]:
    """Seven of them that do nearly as well."""
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES)


def imagenet_names() -> tuple[str, ...]:
    """CLIP's names of ImageNet's 1,000 classes, in the order of their WordNet numbers. Two of them occur twice."""
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)
