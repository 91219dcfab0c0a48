"""Tiny vision transformers of timm and transformers that classify, saved as users' folders are, and their images."""

import json

import torch
from PIL import Image
from torch import nn

NAMES = ("cat", "tabby dog", "cow, bull", "hen", "fox")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SHAPE = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}


def filled(model):
    """Give every weight a value that matters."""
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and not key.endswith("bias")), std=spread)
    return model.eval()


def save_timm(folder, name="vit_tiny_patch16_224", names=NAMES, **shape):
    """A ViT of timm, with bilinear interpolation, a crop and a mean of its own."""
    import timm
    from timm.models import save_for_hf

    shape = {**SHAPE, **shape}
    model = filled(timm.create_model(name, num_classes=len(names), **shape))
    model.pretrained_cfg.update({"mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.8})
    labels = {"label_names": list(names), "label_descriptions": {"fox": "red fox"}}
    save_for_hf(model, folder, model_config=labels, model_args=shape, safe_serialization=True)
    return folder


def save_transformers(folder, name="ViT", names=NAMES, **processing):
    """A classifier of transformers with its image processor; without names, labels are called LABEL_0, .."""
    import transformers

    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    shape = shape if name.startswith("Dino") else {**shape, "intermediate_size": 64}
    labels = {"num_labels": 5} if names is None else {"id2label": dict(enumerate(names))}
    config = getattr(transformers, f"{name}Config")(**shape, **labels)
    filled(getattr(transformers, f"{name}ForImageClassification")(config)).save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD, **processing}
    transformers.ViTImageProcessor(**size).save_pretrained(folder)
    return folder


def save_images(folder, classes=("cat", "cow", "fox", "hen", "tabby_dog"), each=2, size=(50, 40)):
    """Random images in class folders, smooth enough that interpolation matters little."""
    generator = torch.Generator().manual_seed(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = torch.randint(0, 256, (6, 5, 3), generator=generator).to(torch.uint8)
            image = Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BICUBIC)
            image.save(folder / name / f"{number}.png")
    return folder


def change_config(folder, **changes):
    """Change entries of a folder's `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
