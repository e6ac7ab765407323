"""The training-free model (arXiv 2308.15939, section 3) with a single view, written out slowly in float64.

Nothing here is shared with the package, and nothing is clever: the package is checked against it.
"""

import math
from functools import cache

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

TEXTURES = ("carpet", "leather", "grid", "tile", "wood")
WORDS_BEFORE = {
    "normal": ("normal", "flawless", "perfect", "unblemished"),
    "abnormal": ("damaged", "abnormal", "imperfect", "blemished"),
}
WORDS_AFTER = {
    "normal": ("without flaw", "without defect", "without damage"),
    "abnormal": ("with flaw", "with defect", "with damage"),
}
PICTURES = {
    "object": ("industrial photo", "industrial image", "manufacturing image"),
    "texture": ("industrial photo", "textural photo", "surface picture"),
}


@cache
def load(name: str, weights: str) -> tuple[nn.Module, object]:
    """Return a CLIP in float64 and its tokenizer."""
    clip = open_clip.create_model(name)
    clip.load_state_dict(load_file(weights))
    return clip.double().eval().requires_grad_(requires_grad=False), open_clip.get_tokenizer(name)


def sentences(thing: str, picture: str) -> list[str]:
    result = []
    # In the published order, "the" comes first for half of the qualities, and "a" for the others.
    for quality, first, second in (
        ("cropped", "the", "a"),
        ("close-up", "a", "the"),
        ("bright", "a", "the"),
        ("dark", "the", "a"),
        ("jpeg corrupted", "a", "the"),
        ("blurry", "the", "a"),
    ):
        result.append(f"a {quality} {picture} of {first} {thing}")
        result.append(f"a {quality} {picture} of {second} {thing}")
    article = "an" if picture.startswith("industrial") else "a"
    for size in ("", "small ", "large "):
        result.append(f"{article} {picture} of a {size}{thing}")
        result.append(f"{article} {picture} of the {size}{thing}")
    for purpose in ("visual inspection", "anomaly detection"):
        result.append(f"{article} {picture} of the {thing} for {purpose}")
        result.append(f"{article} {picture} of a {thing} for {purpose}")
    return result


def prompts(class_name: str, domain: str, state: str) -> list[str]:
    if domain == "auto":
        domain = "texture" if class_name in TEXTURES else "object"
    noun = "macaroni" if class_name in ("macaroni1", "macaroni2") else class_name
    things = [f"{word} {noun}" for word in WORDS_BEFORE[state]] + [f"{noun} {word}" for word in WORDS_AFTER[state]]
    result = []
    for picture in PICTURES[domain]:
        columns = [sentences(thing, picture) for thing in things]
        for row in zip(*columns, strict=True):
            result += row
    return result


def unit(vector: Tensor) -> Tensor:
    return vector / math.sqrt(float((vector * vector).sum()))


@cache
def text_bank(name: str, weights: str, class_name: str, domain: str = "auto") -> tuple[Tensor, Tensor]:
    """Return state embeddings (2, C) and prompt embeddings (K, C), encoded with the full context."""
    clip, tokenizer = load(name, weights)
    states, units = [], []
    for state in ("normal", "abnormal"):
        tokens = tokenizer(prompts(class_name, domain, state))
        with torch.no_grad():
            embeddings = torch.cat([clip.encode_text(part) for part in tokens.split(154)])
        total = torch.zeros(embeddings.shape[1], dtype=torch.float64)
        for embedding in embeddings:
            total += embedding
            units.append(unit(embedding))
        states.append(unit(total / len(embeddings)))
    return torch.stack(states), torch.stack(units)


def softmax(scores: Tensor) -> Tensor:
    powers = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return powers / powers.sum(dim=-1, keepdim=True)


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attend head by head; all arguments are (L, D)."""
    size = values.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = softmax(torch.einsum("id,jd->ij", queries[:, part], keys[:, part]) / math.sqrt(size))
        outputs.append(torch.einsum("ij,jd->id", weights, values[:, part]))
    return torch.cat(outputs, dim=1)


class Vision:
    """The two paths of one image through an image tower."""

    def __init__(self, visual: nn.Module) -> None:
        self.weights = visual.state_dict()
        self.patch = visual.conv1.weight.shape[-1]
        self.layers = len(visual.transformer.resblocks)
        self.heads = visual.transformer.resblocks[0].attn.num_heads
        self.is_quick = type(visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"

    def weight(self, key: str) -> Tensor:
        return self.weights[key].double()

    def linear(self, x: Tensor, weight: str, bias: str) -> Tensor:
        return torch.einsum("ld,od->lo", x, self.weight(weight)) + self.weight(bias)

    def norm(self, x: Tensor, key: str) -> Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        scaled = centered / torch.sqrt((centered**2).mean(dim=-1, keepdim=True) + 1e-5)
        return scaled * self.weight(f"{key}.weight") + self.weight(f"{key}.bias")

    def scale(self, x: Tensor, key: str) -> Tensor:
        return x * self.weight(key) if key in self.weights else x

    def mlp(self, x: Tensor, block: str) -> Tensor:
        x = self.linear(x, f"{block}.mlp.c_fc.weight", f"{block}.mlp.c_fc.bias")
        gate = torch.sigmoid(1.702 * x) if self.is_quick else (1 + torch.erf(x / math.sqrt(2))) / 2
        return self.linear(x * gate, f"{block}.mlp.c_proj.weight", f"{block}.mlp.c_proj.bias")

    def tokens_of(self, image: Tensor) -> Tensor:
        kernel, side = self.weight("conv1.weight"), self.patch
        tokens = [self.weight("class_embedding")]
        for top in range(0, image.shape[1], side):
            for left in range(0, image.shape[2], side):
                window = image[:, top : top + side, left : left + side]
                tokens.append(torch.einsum("ochw,chw->o", kernel, window))
        return self.norm(torch.stack(tokens) + self.weight("positional_embedding"), "ln_pre")

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        x = self.tokens_of(image.double())
        local, after = x.clone(), []
        for layer in range(self.layers):
            block = f"transformer.resblocks.{layer}"
            inside = self.linear(
                self.norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"
            )
            width = x.shape[1]
            q, k, v = inside[:, :width], inside[:, width : 2 * width], inside[:, 2 * width :]
            out = f"{block}.attn.out_proj.weight", f"{block}.attn.out_proj.bias"
            local = local + self.scale(self.linear(attend(v, v, v, self.heads), *out), f"{block}.ls_1.gamma")
            x = x + self.scale(self.linear(attend(q, k, v, self.heads), *out), f"{block}.ls_1.gamma")
            x = x + self.scale(self.mlp(self.norm(x, f"{block}.ln_2"), block), f"{block}.ls_2.gamma")
            after.append(x[1:])
        projection = self.weight("proj")
        return self.norm(x, "ln_post")[0] @ projection, self.norm(local, "ln_post")[1:] @ projection, after


def vision_tokens(visual: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return class tokens (B, C) and patch tokens (B, N, C)."""
    vision = Vision(visual)
    pairs = [vision(image) for image in images]
    return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


def block_tokens(visual: nn.Module, images: Tensor, depths: tuple[int, ...]) -> Tensor:
    """Return the original path's patch tokens after each of some blocks, counted from 1, (B, S, N, D)."""
    vision = Vision(visual)
    after = [vision(image)[2] for image in images]
    return torch.stack([torch.stack([tokens[depth - 1] for depth in depths]) for tokens in after])


def p_abnormal(token: Tensor, states: Tensor) -> float:
    powers = [math.exp(float((unit(token.double()) * unit(state.double())).sum())) for state in states]
    return powers[1] / (powers[0] + powers[1])


def mean_3x3(grid: list[list[float]]) -> list[list[float]]:
    rows, columns = len(grid), len(grid[0])
    result = [[0.0] * columns for _ in range(rows)]
    for row in range(rows):
        for column in range(columns):
            for near_row in (row - 1, row, row + 1):
                for near_column in (column - 1, column, column + 1):
                    inside_row, inside_column = min(max(near_row, 0), rows - 1), min(max(near_column, 0), columns - 1)
                    result[row][column] += grid[inside_row][inside_column] / 9
    return result


def place(index: int, wanted: int, given: int) -> tuple[int, int, float]:
    """Return the two samples around a sample of a longer line, ends aligned, and its distance to the first."""
    position = index * (given - 1) / (wanted - 1) if wanted > 1 else 0.0
    first = min(int(position), given - 1)
    return first, min(first + 1, given - 1), position - first


def enlarge(grid: list[list[float]], height: int, width: int) -> list[list[float]]:
    result = [[0.0] * width for _ in range(height)]
    for y in range(height):
        top, bottom, down = place(y, height, len(grid))
        for x in range(width):
            left, right, along = place(x, width, len(grid[0]))
            upper = grid[top][left] * (1 - along) + grid[top][right] * along
            lower = grid[bottom][left] * (1 - along) + grid[bottom][right] * along
            result[y][x] = upper * (1 - down) + lower * down
    return result


def smooth_map(values: list[float], grid_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    rows, columns = grid_size
    grid = [list(values[row * columns : (row + 1) * columns]) for row in range(rows)]
    return torch.tensor(enlarge(mean_3x3(grid), *image_size), dtype=torch.float64)


def published_probabilities(
    name: str, weights: str, images: Tensor, class_name: str, domain: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return p(abnormal) of images (B,) and pixels (B, 1, H, W)."""
    clip, _ = load(name, weights)
    states, _ = text_bank(name, weights, class_name, domain)
    height, width = images.shape[-2:]
    patch = clip.visual.conv1.weight.shape[-1]
    scores, maps = [], []
    for token, local in zip(*vision_tokens(clip.visual, images), strict=True):
        scores.append(p_abnormal(token, states))
        values = [p_abnormal(patch_token, states) for patch_token in local]
        maps.append(smooth_map(values, (height // patch, width // patch), (height, width)))
    return torch.tensor(scores, dtype=torch.float64), torch.stack(maps).unsqueeze(1)


def displayed(p: Tensor, name: str, weights: str) -> Tensor:
    """Return the displayed probability for a published one: 3/4 if that exceeds 1/2 by CLIP's temperature."""
    clip, _ = load(name, weights)
    margin, temperature = p - 0.5, math.exp(-float(clip.logit_scale))
    return 0.5 + margin / (2 * (margin.abs() + temperature))
