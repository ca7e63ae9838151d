"""Writes tests/data/images.npz: what the Pillow image processors of transformers make of random images.

    pip install torch transformers pillow
    python tests/oracles/transformers_images.py

checksums: (1000,) u64, the first 8 bytes of the SHA-256 of an image's patches of one frame, (N, 588) f32; 0: refused.
sizes: SHA-256 of the sizes that 100,000 images are resized to, (100000, 2) i32, (0, 0) where refused.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pictures import image_of, sizes_of_images, sizes_of_rule

LIMITS = {"shortest_edge": 12_544, "longest_edge": 9_633_792}


def main():
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil, smart_resize
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

    processors = [Glm4vImageProcessorPil(size=LIMITS), Glm46VImageProcessorPil(size=LIMITS)]
    checksums = []
    for i, (height, width) in enumerate(sizes_of_images()):
        image = Image.fromarray(image_of(i, height, width))
        found = set()
        for processor in processors:
            try:
                out = processor(images=[image], return_tensors="np")
            except ValueError:
                found.add(0)
                continue
            frames = np.asarray(out["pixel_values"]).reshape(-1, 3, 2, 14 * 14)
            assert (frames[:, :, 0] == frames[:, :, 1]).all()
            patches = np.ascontiguousarray(frames[:, :, 0]).astype(np.float32)
            found.add(int.from_bytes(hashlib.sha256(patches.tobytes()).digest()[:8], "little"))
        assert len(found) == 1, (height, width, found)
        checksums.append(found.pop())

    sizes = np.zeros((len(sizes_of_rule()), 2), np.int32)
    for i, (height, width) in enumerate(sizes_of_rule()):
        try:
            sizes[i] = smart_resize(2, height, width, min_pixels=12_544, max_pixels=9_633_792)
        except ValueError:
            continue
    print(f"{checksums.count(0)} images and {(sizes[:, 0] == 0).sum()} sizes refused")
    np.savez(
        Path(__file__).resolve().parents[1] / "data" / "images.npz",
        checksums=np.array(checksums, np.uint64),
        sizes=np.frombuffer(hashlib.sha256(sizes.tobytes()).digest(), np.uint8),
    )


if __name__ == "__main__":
    main()
