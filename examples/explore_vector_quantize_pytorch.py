"""The explorer of another library's codebook: a small VQ-VAE of vector-quantize-pytorch, trained here on photographs.

python examples/explore_vector_quantize_pytorch.py vq_explorer
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from soho_fast.explore import Bundle, build_from_arrays

SIDE, CELL = 96, 12  # of a crop and of a cell, pixels
PHOTOS = {
    "coffee": ("a cup of coffee on a wooden table", "Rachel Michetti", "CC0"),
    "chelsea": ("the face of a cat", "Stefan van der Walt", "CC0"),
    "astronaut": ("an astronaut in an orange suit", "NASA", "public domain"),
    "hubble_deep_field": ("galaxies in a black sky", "NASA and ESA", "public domain"),
    "rocket": ("a rocket at night", "SpaceX", "CC0"),
    "china.jpg": (
        "a temple with a red roof",
        "danielbuechele, flickr.com/photos/danielbuechele/6061409035",
        "CC-BY-2.0",
    ),
    "flower.jpg": ("a pink flower and leaves", "vultilion, flickr.com/photos/vultilion/6056698931", "CC-BY-2.0"),
}


def load(name: str) -> np.ndarray:
    """uint8 (H, W, 3), at half its size."""
    whole = sklearn.datasets.load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    image = Image.fromarray(whole)
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder for the explorer")
    parser.add_argument("--steps", type=int, default=200, help="steps of training")
    chosen = parser.parse_args()

    crops, names, captions = [], [], []
    for name, (caption, _, _) in PHOTOS.items():
        photo = load(name)
        for top in range(0, photo.shape[0] - SIDE + 1, SIDE // 3):
            for left in range(0, photo.shape[1] - SIDE + 1, SIDE // 3):
                crops.append(photo[top : top + SIDE, left : left + SIDE])
                names.append(f"{Path(name).stem} at {left}, {top}")
                captions.append(caption)
    images = np.stack(crops)
    pixels_N3HW = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1

    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 64, CELL, CELL), nn.GELU(), nn.Conv2d(64, 16, 1))
    decoder = nn.Sequential(nn.Conv2d(16, 64, 1), nn.GELU(), nn.ConvTranspose2d(64, 3, CELL, CELL))
    quantizer = VectorQuantize(
        dim=16, codebook_size=96, accept_image_fmap=True, kmeans_init=True, threshold_ema_dead_code=1
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for step in range(chosen.steps):
        batch = pixels_N3HW[torch.randint(len(images), (32,))]
        quantized, _, commitment = quantizer(encoder(batch))
        error = nn.functional.mse_loss(decoder(quantized), batch)
        (error + commitment.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: squared error {error:.3f}")

    with torch.no_grad():
        features_NhwC = encoder(pixels_N3HW).permute(0, 2, 3, 1)
        decoded_K3HW = decoder(quantizer.codebook[:, :, None, None])  # each code alone, as one patch
        decoded_KHW3 = ((decoded_K3HW + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    licences = [
        {"what": caption, "credit": credit, "licence": licence, "images": [f"{Path(name).stem} at *"]}
        for name, (caption, credit, licence) in PHOTOS.items()
    ]
    explorer = build_from_arrays(
        features_NhwC,
        quantizer.codebook.detach(),
        images,
        chosen.folder,
        captions=captions,
        names=names,
        decoded=decoded_KHW3,
        title="Codes of a VQ-VAE on seven photographs",
        licences=licences,
    )
    for word in ("cat", "coffee", "galaxies"):
        print(f"{word}: codes {[entry['code'] for entry in Bundle(explorer).word(word)['codes']]}")
    print(f"open {explorer / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
