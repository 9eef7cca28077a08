"""How random views of images are drawn: probabilities, ranges, sizes."""

from dataclasses import dataclass

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RARE_STEPS = "solarize", "posterize", "erase"


@dataclass(frozen=True)
class ViewSpec:
    """How random views are drawn; the defaults are SimCLR's crop and flip, without colour.

    Attributes:
        size: side of the view in pixels.
        crop_scale: smallest and largest share of the image's area in a crop.
        crop_ratio: smallest and largest width / height of a crop.
        crop_padding: in place of such a crop, the whole image shifted by up to so many of its own
            pixels either way in x and y; 0 is off. What lies beyond the border is black.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter.
        brightness, contrast, saturation: factors are drawn from [max(0, 1 - x), 1 + x].
        hue: shift drawn from [-hue, hue], in turns of the colour circle, at most 0.5.
        grayscale: probability of grey.
        grayscale_first: grey before the colour jitter instead of after it.
        blur: probability of Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        blur_kernel: its width in pixels, odd; 0 takes size / 10 made odd, as SimCLR does.
        solarize: probability of inverting all values of 128 and above.
        posterize: probability of keeping only the first bits of every grey level.
        posterize_bits: how many of the eight, 1 to 8.
        erase: probability of blanking a rectangle of the finished view.
        erase_scale, erase_ratio: its share of the view's area and its height / width, as in
            torchvision's RandomErasing.
        rotate: largest rotation in degrees, either way; 0 is none.
        translate: largest shift as a share of the crop's side; 0 is none.
        shear: largest horizontal shear in degrees, either way; 0 is none.
        mean, std: one value for each channel, in units of the range 0 to 1.
        interpolation: "bilinear" or "bicubic".
    """

    size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int = 0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.2
    grayscale_first: bool = False
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 0
    solarize: float = 0.0
    posterize: float = 0.0
    posterize_bits: int = 4
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    rotate: float = 0.0
    translate: float = 0.0
    shear: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self):
        for name in ("flip", "jitter", "grayscale", "blur", *RARE_STEPS):
            self._check(name, 0 <= getattr(self, name) <= 1, "a probability, 0 to 1")
        strengths = "brightness", "contrast", "saturation", "rotate", "translate", "shear"
        for name in (*strengths, "crop_padding"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check_ranges()
        self._check("posterize_bits", 1 <= self.posterize_bits <= 8, "1 to 8")
        self._check("blur_sigma", 0 <= self.blur_sigma[0] <= self.blur_sigma[1], "rising from 0")
        self._check("hue", 0 <= self.hue <= 0.5, "0 to 0.5 turns")
        self._check("size", self.size >= 1, "1 pixel or more")
        is_odd = self.blur_kernel == 0 or self.blur_kernel % 2 == 1
        self._check("blur_kernel", is_odd, "odd, or 0 for size / 10")
        is_known = self.interpolation in ("bilinear", "bicubic")
        self._check("interpolation", is_known, "bilinear or bicubic")

    def _check_ranges(self):
        for name, most in (("scale", 1), ("ratio", float("inf"))):
            for range_ in (f"crop_{name}", f"erase_{name}"):
                low, high = getattr(self, range_)
                self._check(range_, 0 < low <= high <= most, f"rising, above 0, at most {most}")

    def _check(self, name, is_good, expected):
        if not is_good:
            raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")

    @property
    def is_affine(self):
        """Whether there is more geometry than crop and flip."""
        return bool(self.rotate or self.translate or self.shear)

    @property
    def is_jittered(self):
        """Whether the colour jitter can change anything."""
        strengths = self.brightness, self.contrast, self.saturation, self.hue
        return bool(self.jitter and any(strengths))
