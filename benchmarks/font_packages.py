"""The type designs of font_identities: one face for each family of free fonts with Japanese kanji that Debian packages.

Left out by hand: fonts merged from others' glyphs (MigMix, Migu, Monapo, Komatuna, Ricty, Ume Plus), one redrawn after
Klee (LXGW WenKai), grass script, which nobody tells apart without its context, and fonts with few kanji. Some that
remain are copies of others (Takao of IPAex); the pictures tell, see `font_glyphs.families`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FONTS = Path("/usr/share/fonts")


@dataclass(frozen=True)
class Design:
    """One face of a font file.

    Attributes:
        name: Names the images drawn with it.
        package: Debian's package of the file.
        file: The file's name; where below the folder of fonts it lies does not matter.
        index: The face's number in a collection (.ttc).
    """

    name: str
    package: str
    file: str
    index: int = 0


DESIGNS = (
    Design("noto-sans", "fonts-noto-cjk", "NotoSansCJK-Regular.ttc"),
    Design("noto-serif", "fonts-noto-cjk", "NotoSerifCJK-Regular.ttc"),
    Design("ipaex-gothic", "fonts-ipaexfont-gothic", "ipaexg.ttf"),
    Design("ipaex-mincho", "fonts-ipaexfont-mincho", "ipaexm.ttf"),
    Design("takao-gothic", "fonts-takao-gothic", "TakaoGothic.ttf"),
    Design("takao-mincho", "fonts-takao-mincho", "TakaoMincho.ttf"),
    Design("vl-gothic", "fonts-vlgothic", "VL-Gothic-Regular.ttf"),
    Design("m-plus", "fonts-mplus", "Mplus1-Regular.otf"),
    Design("ume-gothic", "fonts-horai-umefont", "ume-tgo4.ttf"),
    Design("ume-mincho", "fonts-horai-umefont", "ume-tmo3.ttf"),
    Design("biz-ud-gothic", "fonts-morisawa-bizud-gothic", "BIZUDGothic-Regular.ttf"),
    Design("biz-ud-mincho", "fonts-morisawa-bizud-mincho", "BIZUDMincho-Regular.ttf"),
    Design("motoya-cedar", "fonts-motoya-l-cedar", "MTLc3m.ttf"),
    Design("motoya-maruberi", "fonts-motoya-l-maruberi", "MTLmr3m.ttf"),
    Design("droid-fallback", "fonts-droid-fallback", "DroidSansFallbackFull.ttf"),
    Design("wqy-microhei", "fonts-wqy-microhei", "wqy-microhei.ttc"),
    Design("wqy-zenhei", "fonts-wqy-zenhei", "wqy-zenhei.ttc"),
    Design("hanazono-mincho", "fonts-hanazono", "HanaMinA.ttf"),
    Design("babelstone-han", "fonts-babelstone-han", "BabelStoneHan.ttf"),
    Design("uming", "fonts-arphic-uming", "uming.ttc"),
    Design("ukai", "fonts-arphic-ukai", "ukai.ttc"),
    Design("tw-kai", "fonts-cns11643-kai", "TW-Kai-98_1.ttf"),
    Design("tw-sung", "fonts-cns11643-sung", "TW-Sung-98_1.ttf"),
    Design("klee", "fonts-klee", "KleeOne-Regular.ttf"),
    Design("konatu", "fonts-konatu", "Konatu.ttf"),
    Design("mona", "fonts-mona", "mona.ttf"),
    Design("dot-gothic", "fonts-dotgothic16", "DotGothic16-Regular.ttf"),
    Design("misaki-gothic", "fonts-misaki", "misaki_gothic.ttf"),
    Design("kanji-stroke-orders", "fonts-kanjistrokeorders", "KanjiStrokeOrders_v4.003.ttf"),
    Design("kiloji", "fonts-kiloji", "kiloji.ttf"),
    Design("seto", "fonts-seto", "setofont.ttf"),
    Design("yoz", "fonts-yozvox-yozfont-new-kana", "YOzRN_.ttf"),
    Design("yusei-magic", "fonts-yusei-magic", "YuseiMagic-Regular.ttf"),
    Design("reggae", "fonts-reggae", "ReggaeOne-Regular.ttf"),
    Design("rocknroll", "fonts-rocknroll", "RocknRollOne-Regular.ttf"),
    Design("stick", "fonts-stick", "Stick-Regular.ttf"),
    Design("rampart", "fonts-rampart", "RampartOne-Regular.ttf"),
    Design("aoyagi-soseki", "fonts-aoyagi-soseki", "aoyagi-soseki.ttf"),
    Design("kouzan", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu.ttf"),
    Design("kouzan-gyosho", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu-gyosho.ttf"),
)


def packages(designs: Sequence[Design] = DESIGNS) -> list[str]:
    """Debian's packages of the designs, sorted."""
    return sorted({design.package for design in designs})


def apt_command(designs: Sequence[Design] = DESIGNS) -> str:
    """The command that installs them, after `apt-get update`."""
    return f"apt-get install --yes --no-install-recommends {' '.join(packages(designs))}"


def font_files(folder: Path, designs: Sequence[Design] = DESIGNS) -> dict[str, Path]:
    """The designs' files anywhere below a folder, by the design's name; those that are not there are left out.

    Raises:
        FileNotFoundError: If the folder is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder of fonts {folder} not found; name another with --fonts")
    wanted = {design.file for design in designs}
    paths = {path.name: path for path in sorted(folder.rglob("*")) if path.name in wanted}
    return {design.name: paths[design.file] for design in designs if design.file in paths}


def missing_packages(found: dict[str, Path], designs: Sequence[Design] = DESIGNS) -> str:
    """One line that names the packages whose files were not found, or an empty string."""
    missing = packages([design for design in designs if design.name not in found])
    if not missing:
        return ""
    return f"{len(missing)} font packages are missing: {' '.join(missing)}; --packages prints the command for all"
