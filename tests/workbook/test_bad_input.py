"""Bad and hostile input over every notebook: one clear message and a failure, or an honest result. Nothing hangs, nothing else changes."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hyperspy.api as hs
import numpy as np
import pytest
import yaml
from broken import (
    ATOM,
    CELL,
    EVIL,
    LAUGHS,
    MARK,
    Break,
    announce,
    as_hspy,
    as_zspy,
    axis_by_formula,
    both,
    by_hand,
    chunk_is_a_link,
    chunk_is_junk,
    companion_link,
    cut,
    fifo,
    flipped,
    folder_for_a_file,
    frames,
    in_hspy,
    in_results,
    lacking,
    link,
    link_outside,
    name_a_package,
    nothing_more,
    odd_names,
    of,
    outside,
    phase,
    pickled_chunks,
    pickled_npy,
    pickled_npz,
    random_counts,
    raw_outside,
    replaced,
    result_with,
    result_without,
    said,
    text,
    virtual_outside,
    with_nan,
    with_parameters,
)
from executed import alone

import emphase
import helpers

ROOT = helpers.PROJECT_ROOT
VENDOR = ROOT.parent / "shared" / "realdata" / "vendor_files"
SECONDS, MEGABYTES = 100, 6000  # of one run; the memory is what may be reserved, with that of all libraries

GATE, DRIFT, SURFACE, INTERFACE, CALIBRATION, MATCHING, FRACTION, *_ = helpers.STEPS
COMPARISON = helpers.COMPARISON


# --- the table -----------------------------------------------------------------------------


class Case(NamedTuple):
    """A notebook, what is broken, and the message that it must end in; "ok" or "not_acquired" where it may go on."""

    step: str
    breaks: Break
    expected: str


CASES: dict[str, Case] = {
    # sample.yaml
    "yaml: empty": Case(GATE, text(""), r"tiny/sample\.yaml: got NoneType, expected keys and values"),
    "yaml: a list": Case(DRIFT, text("- a\n- b\n"), r"got list, expected keys and values"),
    "yaml: UTF-16": Case(SURFACE, text("id: tiny\n".encode("utf-16")), r"tiny/sample\.yaml: not YAML in UTF-8"),
    "yaml: Latin-1": Case(GATE, text("id: tiny\nlabel: gr\u00f6\u00dfe\n".encode("latin-1")), r"not YAML in UTF-8: .* at byte"),
    "yaml: a key twice": Case(
        GATE, text("id: tiny\nlabel: a\nlabel: b\nacquisitions: {}\n"), r"line 3: not YAML: the key 'label' stands twice"
    ),
    "yaml: billion laughs": Case(GATE, text(LAUGHS + "id: tiny\nlabel: *a9\nacquisitions: {}\n"), r"not YAML: more than 10 aliases"),
    "yaml: holds itself": Case(
        GATE, text("id: tiny\nlabel: x\nlamella: &l {steps: *l}\nacquisitions: {}\n"), r"more than 30 values within each other"
    ),
    "yaml: 20000 brackets": Case(GATE, text("id: " + "[" * 20000), r"tiny/sample\.yaml.*not YAML"),
    "yaml: 5000 digits": Case(
        GATE, text(f"id: tiny\nlabel: x\nsintering: {{temperature_C: {'9' * 5000}}}\n"), r"not YAML: Exceeds the limit"
    ),
    "yaml: no such date": Case(GATE, text("id: tiny\nlabel: 2026-13-45\n"), r"not YAML: month must be in 1\.\.12"),
    "yaml: two documents": Case(GATE, text("id: tiny\n---\nid: tiny\n"), r"line 2: not YAML"),
    "yaml: an object": Case(
        GATE, text("id: !!python/object/apply:os.mkdir [code_ran]\n"), r"line 1: not YAML: could not determine a constructor"
    ),
    "yaml: half a character": Case(GATE, text('id: tiny\nlabel: "\\ud800"\nacquisitions: {}\n'), r"characters that cannot be shown"),
    "yaml: a megabyte": Case(GATE, text("# " + "x" * 1_000_000), r"sample\.yaml: 1000002 bytes, expected at most 200000"),
    "yaml: a link out": Case(
        GATE,
        both(lambda s: nothing_more(shutil.move(s / "sample.yaml", outside(s) / "s.yaml")), link("sample.yaml", "../../s.yaml")),
        r"sample\.yaml: a link out of the sample's folder",
    ),
    "yaml: a folder": Case(
        GATE, lambda s: nothing_more(((s / "sample.yaml").unlink(), (s / "sample.yaml").mkdir())), r"tiny/sample\.yaml: no such file"
    ),
    "yaml: not a number": Case(DRIFT, of("cryo_stem", "pixel_size_nm", math.nan), r"cryo_stem\.pixel_size_nm: got nan, expected"),
    "yaml: infinite": Case(INTERFACE, of("interface", "beam_energy_keV", math.inf), r"interface\.beam_energy_keV: got inf, expected"),
    "yaml: true for a number": Case(CALIBRATION, of("ped", "step_nm", True), r"ped\.step_nm: got True, expected a valid number"),
    "yaml: a number with its unit": Case(
        SURFACE, of("haadf", "pixel_size_nm", "12.5 pm"), r"haadf\.pixel_size_nm: got '12\.5 pm', expected a valid number \(nm\)"
    ),
    "yaml: picometres": Case(
        SURFACE, of("haadf", "pixel_size_nm", 12500.0), r"haadf\.pixel_size_nm: got 12500\.0, expected less than or equal to 100"
    ),
    "yaml: volts": Case(
        MATCHING, of("ped", "beam_energy_keV", 200000), r"ped\.beam_energy_keV: got 200000, expected less than or equal to 1500"
    ),
    "yaml: no direction": Case(SURFACE, of("haadf", "zone_axis", [0, 0, 0]), r"haadf\.zone_axis: got \[0, 0, 0\], expected a direction"),
    "yaml: a phase that is a path": Case(
        MATCHING, of("ped", "phases", ["../../x"]), r"ped\.phases\.0: got '\.\./\.\./x', expected the name of a CIF"
    ),
    "yaml: another path": Case(SURFACE, of("haadf", "phase", "/etc/x"), r"haadf\.phase: got '/etc/x', expected the name of a CIF"),
    "yaml: a long list of faults": Case(
        GATE, text("id: tiny\nlabel: x\nacquisitions: {}\n" + "".join(f"k{i}: 1\n" for i in range(999))), r"979 more faults"
    ),
    "label: hostile": Case(GATE, said("label", EVIL), "ok"),
    "label: hostile, in figures": Case(SURFACE, said("label", EVIL), "ok"),
    # files
    "file: outside": Case(GATE, of("haadf", "file", "../../x.tif"), r"haadf\.file: got '\.\./\.\./x\.tif', expected a path inside"),
    "file: a link to a device": Case(GATE, link("haadf.tif", "/dev/zero"), r"haadf\.file: got 'haadf\.tif', expected a path inside"),
    "file: a link to itself": Case(GATE, link("haadf.tif", "haadf.tif"), r"acquisitions\.haadf\.file: "),
    "file: a FIFO": Case(GATE, fifo, r"haadf\.file: no file 'haadf\.tif'"),
    "file: a folder": Case(GATE, folder_for_a_file, r"haadf\.file: no file 'haadf\.tif'"),
    "file: no name": Case(GATE, of("haadf", "file", ""), r"haadf\.file: no file"),
    "file: a name too long": Case(GATE, of("haadf", "file", "a" * 5000), r"haadf\.file: got 'aaa.*expected the name of a file"),
    "file: a NUL in its name": Case(
        GATE, text('id: tiny\nlabel: x\nacquisitions: {haadf: {file: "a\\0", beam_energy_keV: 200}}\n'), r"cannot be shown"
    ),
    "file: odd names": Case(GATE, odd_names, "ok"),
    "file: text": Case(INTERFACE, replaced("interface.tif", "no image"), r"interface\.tif: cannot be read"),
    "file: empty": Case(DRIFT, replaced("stack.hspy", b""), r"stack\.hspy: the file is empty"),
    "file: another suffix": Case(
        CALIBRATION,
        both(lambda s: nothing_more((s / "ped.hspy").rename(s / "ped.blo")), of("ped", "file", "ped.blo")),
        r"ped\.blo: cannot be read",
    ),
    "file: no format": Case(
        GATE,
        both(lambda s: nothing_more((s / "haadf.tif").rename(s / "haadf.doc")), of("haadf", "file", "haadf.doc")),
        r"haadf\.doc: no reader for \.doc",
    ),
    "file: a reader that follows names": Case(
        GATE,
        both(lambda s: nothing_more((s / "haadf.tif").rename(s / "haadf.asw")), of("haadf", "file", "haadf.asw")),
        r"no reader for \.asw",
    ),
    "file: cut, stack": Case(DRIFT, cut("stack.hspy", 0.6), r"stack\.hspy: cannot be read"),
    "file: cut, image": Case(SURFACE, cut("haadf.tif", 0.6), r"haadf\.tif: cannot be read"),
    "file: cut, interface": Case(INTERFACE, cut("interface.tif", 0.6), r"interface\.tif: cannot be read"),
    "file: cut, scan": Case(CALIBRATION, cut("ped.hspy", 0.9), r"ped\.hspy: cannot be read"),
    "file: cut, all of them": Case(GATE, both(cut("stack.hspy", 0.5), cut("haadf.tif", 0.5)), r"stack\.hspy[\s\S]*haadf\.tif"),
    # hostile recordings
    "hostile: names a package": Case(GATE, as_hspy("haadf", (64, 64), name_a_package), "ok"),
    "hostile: an axis by a formula": Case(GATE, as_hspy("haadf", (64, 64), axis_by_formula), "ok"),
    "hostile: unit that computes": Case(
        SURFACE,
        both(as_hspy("haadf", (64, 64), lambda g, _: g["axis-1"].attrs.__setitem__("units", "9**9**9**9"))),
        r"haadf\.pixel_size_nm: missing, and hostile\.hspy holds no calibration",
    ),
    "hostile: link to another file": Case(
        GATE, as_hspy("haadf", (64, 64), link_outside), r"hostile\.hspy: links to 'outside\.hspy' elsewhere, expected data inside"
    ),
    "hostile: virtual data": Case(
        GATE, as_hspy("haadf", (64, 64), virtual_outside), r"hostile\.hspy: links to 'outside\.hspy' elsewhere, expected data inside"
    ),
    "hostile: external storage": Case(
        GATE, as_hspy("haadf", (64, 64), raw_outside), r"hostile\.hspy: links to 'raw' elsewhere, expected data inside"
    ),
    "hostile: pickled .npy": Case(GATE, pickled_npy, r"pickled\.npy: cannot be read"),
    "hostile: pickled .zspy": Case(GATE, as_zspy(pickled_chunks), r"hostile\.zspy: holds arrays of shape \(4, 4\), expected one image"),
    "hostile: link in a .zspy": Case(GATE, as_zspy(chunk_is_a_link), r"hostile\.zspy: 0 is a link out of its folder"),
    "hostile: a broken chunk": Case(GATE, as_zspy(chunk_is_junk), r"hostile\.zspy is truncated or damaged"),
    "hostile: link beside it": Case(GATE, companion_link, r"x\.emi: x_1\.ser is a link out of its folder"),
    "bomb: a stack": Case(
        DRIFT,
        as_hspy("cryo_stem", (4, 64, 64), announce((1000, 30000, 30000))),
        r"announces 1000 × 30000 × 30000 uint16 \(1\.8e\+06 MB\), expected no more than",
    ),
    "bomb: an image": Case(SURFACE, as_hspy("haadf", (64, 64), announce((10**6, 10**6))), r"announces 1000000 × 1000000 uint16"),
    "bomb: a scan": Case(
        MATCHING, as_hspy("ped", (2, 2, 64, 64), announce((9999, 9999, 512, 512))), r"announces 9999 × 9999 × 512 × 512 uint16"
    ),
    "bomb: one that is compressed": Case(
        INTERFACE,
        both(
            as_hspy("interface", (64, 64), announce((50000, 50000), (1000, 1000))),
            lambda s: nothing_more((s / "padding").write_bytes(bytes(10_000_000))),
        ),
        r"announces 50000 × 50000 uint16 \(5000 MB\); expected at most 750 MB, an eighth of the memory",
    ),
    "bomb: one chunk": Case(
        CALIBRATION,
        both(
            as_hspy("ped", (2, 2, 64, 64), announce((40, 40, 1000, 1000), (40, 40, 1000, 1000), "u1")),
            lambda s: nothing_more((s / "padding").write_bytes(bytes(10_000_000))),
        ),
        r"of which 1600 MB are read at once; expected at most 750 MB",
    ),
    # 02
    "stack: NaN": Case(DRIFT, frames("stack.hspy", with_nan((6, 64, 64))), r"stack\.hspy: NaN or infinite values in 6 frames"),
    "stack: negative": Case(DRIFT, frames("stack.hspy", lambda: -np.ones((6, 64, 64), np.int16)), r"stack\.hspy: negative values"),
    "stack: blank": Case(DRIFT, frames("stack.hspy", lambda: np.zeros((6, 64, 64), np.uint16)), r"stack\.hspy: all frames are blank"),
    "stack: constant": Case(DRIFT, frames("stack.hspy", lambda: np.full((6, 64, 64), 7, np.uint16)), r"no noise in the frames"),
    "stack: an image": Case(
        DRIFT, frames("stack.hspy", random_counts((64, 64))), r"stack\.hspy: holds arrays of shape \(64, 64\), expected a stack of frames"
    ),
    "stack: small frames": Case(DRIFT, frames("stack.hspy", random_counts((6, 8, 8))), r"frames of 8 x 8 px, expected 16 x 16 at least"),
    "stack: complex": Case(
        DRIFT, frames("stack.hspy", lambda: np.ones((6, 64, 64), np.complex64)), r"stack\.hspy: holds arrays of shape .* expected a stack"
    ),
    "stack: no calibration": Case(
        DRIFT, frames("stack.hspy", random_counts((6, 64, 64)), units="px"), r"cryo_stem\.pixel_size_nm: missing"
    ),
    "stack: noise": Case(DRIFT, both(frames("stack.hspy", random_counts((6, 64, 64))), with_parameters(show_animation=False)), "ok"),
    "stack: no frame 99": Case(DRIFT, with_parameters(leave_out=[99]), r"99"),
    "stack: a frame in words": Case(DRIFT, with_parameters(leave_out=["first"]), r"frame first by hand: expected whole numbers"),
    "stack: parameter is no number": Case(DRIFT, with_parameters(max_shift_px=math.nan), r"max_shift_px"),
    "stack: absent": Case(DRIFT, said("acquisitions", "cryo_stem", ...), "not_acquired"),
    # 03
    "surface: NaN": Case(SURFACE, frames("haadf.tif", with_nan((128, 128))), r"haadf\.tif: 1 pixels are not finite numbers"),
    "surface: constant": Case(SURFACE, frames("haadf.tif", lambda: np.full((128, 128), 7, np.uint16)), r"haadf\.tif"),
    "surface: noise": Case(SURFACE, frames("haadf.tif", random_counts((128, 128))), r"haadf\.tif"),
    "surface: 4 x 4": Case(SURFACE, frames("haadf.tif", random_counts((4, 4))), r"haadf\.tif"),
    "surface: a scan": Case(
        SURFACE,
        both(frames("s.hspy", random_counts((3, 3, 32, 32))), of("haadf", "file", "s.hspy")),
        r"s\.hspy: holds arrays of shape \(3, 3, 32, 32\), expected one image",
    ),
    "surface: absurd pixels": Case(SURFACE, of("haadf", "pixel_size_nm", 50.0), r"haadf\.pixel_size_nm: got 50, .* expected a pixel of"),
    "surface: tiny pixels": Case(
        SURFACE, of("haadf", "pixel_size_nm", 0.0001), r"haadf\.pixel_size_nm: got 0\.0001, .* expected a pixel of"
    ),
    "surface: metres": Case(
        SURFACE, frames("haadf.tif", random_counts((64, 64)), units="m", scale=1e6), r"haadf\.pixel_size_nm: missing, and haadf\.tif"
    ),
    "surface: half a point": Case(SURFACE, with_parameters(surface_px=[10.0, 20.0, 30.0]), r"surface_px"),
    "surface: points far away": Case(SURFACE, with_parameters(surface_px=[-1e9, 0.0, -1e9, 1e9]), r"surface_px"),
    "surface: further image gone": Case(
        SURFACE, of("haadf", "series", [{"file": "no.tif", "dose_e_per_A2": 1}]), r"haadf\.series\.0\.file: no file 'no\.tif'"
    ),
    # 04
    "interface: NaN": Case(INTERFACE, frames("interface.tif", with_nan((128, 128))), r"interface"),
    "interface: constant": Case(INTERFACE, frames("interface.tif", lambda: np.full((256, 256), 7, np.uint16)), r"interface"),
    "interface: noise": Case(INTERFACE, frames("interface.tif", random_counts((512, 512))), "ok"),
    "interface: 8 x 8": Case(
        INTERFACE, frames("interface.tif", random_counts((8, 8))), r"interface\.pixel_size_nm: got 0\.02, a field of 0\.16"
    ),
    "interface: absurd pixels": Case(INTERFACE, of("interface", "pixel_size_nm", 50.0), r"interface"),
    "interface: no window": Case(INTERFACE, with_parameters(window_nm=0.0), r"window_nm"),
    "interface: no stride": Case(INTERFACE, with_parameters(stride_nm=0.0), r"stride_nm"),
    "interface: unknown candidate": Case(INTERFACE, with_parameters(candidate_phases=["kryptonite"]), r"kryptonite"),
    "phase: junk": Case(INTERFACE, phase("junk"), r"odd\.cif: (cannot be read|holds no atoms)"),
    "phase: no atoms": Case(INTERFACE, phase(CELL.format(a=4)), r"odd\.cif: (cannot be read|holds no atoms)"),
    "phase: a cell of a micrometre": Case(
        INTERFACE, phase(CELL.format(a=10000) + ATOM.format(x=0)), r"odd\.cif: a cell of 1e\+04 × 1e\+04 × 1e\+04 Å"
    ),
    "phase: a flat cell": Case(INTERFACE, phase(CELL.format(a=0) + ATOM.format(x=0)), r"odd\.cif: "),
    "phase: an atom nowhere": Case(INTERFACE, phase(CELL.format(a=4) + ATOM.format(x="nan")), r"odd\.cif: "),
    # 05
    "scan: NaN": Case(CALIBRATION, frames("ped.hspy", with_nan((2, 2, 64, 64)), "1/angstrom"), r"PED scan: line 0 holds NaN"),
    "scan: blank": Case(
        CALIBRATION, frames("ped.hspy", lambda: np.zeros((2, 2, 64, 64), np.uint16), "1/angstrom"), r"PED scan: all patterns are zero"
    ),
    "scan: negative": Case(
        CALIBRATION, frames("ped.hspy", lambda: -np.ones((2, 2, 64, 64), np.int16), "1/angstrom"), r"PED scan: no direct beam"
    ),
    "scan: 4 x 4 pixels": Case(
        CALIBRATION, frames("ped.hspy", random_counts((2, 2, 4, 4)), "1/angstrom"), r"ped\.hspy: patterns of 4 x 4 pixels, expected"
    ),
    "scan: no scale": Case(CALIBRATION, frames("ped.hspy", random_counts((2, 2, 64, 64)), "px"), r"ped\.scale_invA_per_px: missing"),
    "scan: six axes": Case(
        CALIBRATION, frames("ped.hspy", random_counts((2, 2, 2, 2, 16, 16)), "1/angstrom"), r"ped\.hspy: holds arrays of shape"
    ),
    "scan: absent": Case(CALIBRATION, said("acquisitions", "ped", ...), "not_acquired"),
    # 06
    "before: no calibration": Case(MATCHING, result_without("05_ped_calibration.json"), r"run 05_ped_calibration for tiny first"),
    "before: JSON cut": Case(
        MATCHING, in_results("05_ped_calibration.json", lambda b: b[:200]), r"tiny/05_ped_calibration\.json: not JSON"
    ),
    "before: a list": Case(MATCHING, in_results("05_ped_calibration.json", "[1]"), r"05_ped_calibration\.json: holds no status"),
    "before: another schema": Case(
        MATCHING, in_results("05_ped_calibration.json", '{"status": "ok"}'), r"05_ped_calibration\.json: holds no '\w+'"
    ),
    "before: NaN in JSON": Case(
        MATCHING, in_results("05_ped_calibration.json", '{"status": "ok", "scale_invA_per_px": NaN}'), r"not JSON \(NaN is no number"
    ),
    "before: arrays gone": Case(MATCHING, result_without("05_ped_calibration.npz"), r"run 05_ped_calibration for tiny first"),
    "before: arrays cut": Case(
        MATCHING, in_results("05_ped_calibration.npz", lambda b: b[:500]), r"05_ped_calibration\.npz: cannot be read"
    ),
    "before: arrays pickled": Case(
        MATCHING, in_results("05_ped_calibration.npz", pickled_npz), r"05_ped_calibration\.npz: cannot be read \(Object arrays"
    ),
    "before: another scan since": Case(
        MATCHING, frames("ped.hspy", random_counts((3, 3, 64, 64)), "1/angstrom"), r"run 05_ped_calibration"
    ),
    # 07
    "maps: gone": Case(FRACTION, result_without("06_ped.h5"), r"run 06_ped_matching for tiny first"),
    "maps: cut": Case(FRACTION, in_results("06_ped.h5", lambda b: b[: len(b) // 2]), r"tiny/06_ped\.h5: cannot be read"),
    "maps: text": Case(FRACTION, in_results("06_ped.h5", "no map"), r"tiny/06_ped\.h5: cannot be read"),
    "maps: of an older version": Case(FRACTION, in_results("06_ped.h5", lacking), r"06_ped\.h5: holds no 'second_share'"),
    "maps: JSON of another schema": Case(
        FRACTION, result_with(MATCHING, chance_nats=...), r"06_ped_matching\.json: holds no 'chance_nats'"
    ),
    "maps: no parameters": Case(FRACTION, result_with(MATCHING, parameters={}), r"06_ped_matching\.json: holds no '\w+'"),
    "maps: other phases since": Case(FRACTION, of("ped", "phases", ["layered", "llzo"]), r"06_ped_matching\.json: phases: got"),
    "maps: another scan since": Case(
        FRACTION, frames("ped.hspy", random_counts((3, 3, 64, 64)), "1/angstrom"), r"run 05_ped_calibration|run 06_ped_matching"
    ),
    # 08
    "compared: a result cut": Case(COMPARISON, in_results("07_rocksalt_fraction.json", lambda b: b[:300]), "ok"),
    "compared: a drift cut": Case(COMPARISON, in_results("02_cryo_stem_drift.json", '{"status": "ok", "by'), "ok"),
    "compared: a list for a result": Case(COMPARISON, in_results("07_rocksalt_fraction.json", "[]"), "ok"),
    "compared: a broken sample": Case(COMPARISON, text("id: ["), "ok"),
    "compared: maps cut": Case(COMPARISON, in_results("06_ped.h5", lambda b: b[:999]), r"06_ped\.h5: cannot be read"),
    "compared: hostile label": Case(COMPARISON, said("label", EVIL), "ok"),
    "compared: no such sample": Case(COMPARISON, with_parameters(leave_out=["x"]), r"leave_out: no sample 'x'"),
    "compared: no folder": Case(COMPARISON, with_parameters(data_dir="/no/such"), r"no such folder"),
    # by hand
    "by hand: junk": Case(SURFACE, by_hand("a: ["), r"tiny/manual\.yaml.*not YAML"),
    "by hand: billion laughs": Case(SURFACE, by_hand(LAUGHS), r"manual\.yaml.*aliases"),
    "by hand: unknown step": Case(SURFACE, by_hand("99_x: {}"), r"manual\.yaml: unknown step 99_x"),
    "by hand: unknown parameter": Case(
        SURFACE, by_hand(f"{SURFACE}: {{parameters: {{x: 1}}, reason: why, date: 2026-01-01}}"), r"unknown parameter x"
    ),
    "by hand: made on a device": Case(
        SURFACE,
        by_hand(f"{SURFACE}: {{parameters: {{seed: 4}}, reason: why, date: 2026-01-01, made_on: {{/dev/zero: abc}}}}"),
        r"made on /dev/zero",
    ),
    "by hand: a text for a number": Case(
        SURFACE, by_hand(f"{SURFACE}: {{parameters: {{seed: four}}, reason: why, date: 2026-01-01}}"), r"seed: got 'four'"
    ),
    # parameters
    "parameter: unknown": Case(GATE, with_parameters(limit_phase="x"), r"unknown parameter limit_phase, .*did you mean limit_phases"),
    "parameter: of a path": Case(GATE, with_parameters(limit_phases="../../x"), r"no phase '\.\./\.\./x'"),
    "parameter: sample outside": Case(GATE, with_parameters(sample_id="../tiny"), r"sample\.yaml"),
    "parameter: no patterns": Case("00_demo_data", with_parameters(scan_patterns=0, cryo_frames=0), r"scan_patterns"),
    "parameter: text": Case("00_demo_data", with_parameters(seed="x"), r"seed: got 'x'"),
    "parameter: no step between zone axes": Case(MATCHING, with_parameters(step_deg=0), r"step_deg: got 0, expected 0\.5 to 10"),
    "parameter: fewer than no trials": Case(FRACTION, with_parameters(trials=-1), r"trials: got -1, expected 1 to 50"),
    "parameter: more draws than memory": Case(FRACTION, with_parameters(draws=10**12), r"draws: got 1000000000000, expected 20 to 100,000"),
    "parameter: more resamplings than memory": Case(
        SURFACE, with_parameters(bootstrap_draws=10**12), r"bootstrap_draws: got 10+, expected"
    ),
    "parameter: window of nothing": Case(INTERFACE, with_parameters(window_nm=0.0), r"window_nm: got 0\.0, expected"),
    "parameter: half a pattern": Case(
        CALIBRATION, with_parameters(calibration_patterns=32.5), r"calibration_patterns: got 32\.5, expected int"
    ),
    "parameter: yes in words": Case(MATCHING, with_parameters(mixtures="yes"), r"mixtures: got 'yes', expected bool"),
    "parameter: seed below zero": Case(FRACTION, with_parameters(seed=-1), r"seed: got -1, expected 0 to"),
    "parameter: of the validation": Case("09_validation", with_parameters(fully=True), r"unknown parameter fully"),
}


# every format of the recorded files, cut and with bits the other way round
FORMATS = ["test1.blo", "test.mib", "test_multi.mib", "topspin_test_A.app5", "bismuth.dm3", "bismuth.dm4", "64x64x5_TEM_preview_1.ser",
           "fei_example_tem_stack.emd", "temp.mrc", "test_tvips_2345_000.tvips", "TVIPS_bin4.tif", "nexus_dls_example.nxs"]  # fmt: skip
SCANS = {".blo", ".mib", ".app5", ".mrc", ".tvips"}


def test_there_are_enough_cases_and_no_notebook_is_left_out():
    assert len(CASES) >= 60
    assert {case.step for case in CASES.values()} >= {*helpers.STEPS, COMPARISON, "00_demo_data", "09_validation"}


def test_the_hostile_recordings_are_hostile(tmp_path, capsys):
    """hyperspy itself runs what the two files hold."""
    sample = tmp_path / "data" / "tiny"
    sample.mkdir(parents=True)
    frames("a.hspy", lambda: np.ones((64, 64), np.uint16))(sample)
    in_hspy("a.hspy", axis_by_formula)(sample)
    hs.load(sample / "a.hspy")
    assert (tmp_path / MARK).is_dir()
    frames("b.hspy", lambda: np.ones((64, 64), np.uint16))(sample)
    in_hspy("b.hspy", name_a_package)(sample)
    hs.load(sample / "b.hspy")
    assert "Zen of Python" in capsys.readouterr().out


def test_folders_with_names_that_are_no_ids_are_told_and_not_run(tmp_path):
    odd = ["ü 'q' \"d\" $(touch x) `touch x`", "{x}", "-n", "<b>", "a\nb", "=1+1", os.fsdecode(b"\xff")]
    for name in (*odd, "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sample.yaml").write_text("id: x")
    assert helpers.list_samples(tmp_path) == ["good"]
    told = helpers.misnamed_samples(tmp_path)
    assert len(told) == len(odd) and all(why.isprintable() and "expected a name of letters, digits" in why for why in told)


@pytest.mark.parametrize("label", [EVIL, "600 °C $\\frac{", "$x$", "$", "a $ b $"])
def test_a_label_that_is_half_a_formula_is_drawn_as_it_is(label, tmp_path):
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots()
    ax.plot([1, 1000], label=label)
    ax.set_yscale("log")
    ax.set_title(label)
    ax.set_xticks([0, 1], [label, "1"])
    ax.legend()
    fig.suptitle(label)
    emphase.drawing.without_formulae(fig)
    with plt.rc_context({"svg.fonttype": "none"}):
        fig.savefig(tmp_path / "figure.svg")
    plt.close(fig)
    drawn = re.sub(r"<!--.*?-->", "", (tmp_path / "figure.svg").read_text(), flags=re.DOTALL)
    assert "<script" not in drawn and "onerror=alert(2)>" not in drawn
    assert drawn.count("$") >= 3 * label.count("$")
    assert "mathdefault" not in drawn  # the ticks of the axis are still numbers


# --- running them --------------------------------------------------------------------------


class Server:
    """The process that forks for every notebook."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("notebook_server.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, notebook: str, parameters: dict, seconds: float = SECONDS, megabytes: int | None = MEGABYTES) -> dict:
        job = {"notebook": notebook, "parameters": parameters, "seconds": seconds, "megabytes": megabytes}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=20)


def parameters_of(folder: Path, step: str) -> dict:
    given = {f"{name}_dir": str(folder / name) for name in ("data", "results", "figures")}
    return given | ({"sample_id": "tiny"} if step in helpers.STEPS else {})


@pytest.fixture(scope="module")
def good(tmp_path_factory, executed) -> Path:
    """The tiny sample with the results that 06, 07 and 08 read."""
    assert executed.status == 0, executed.text
    folder = tmp_path_factory.mktemp("good")
    for name in ("data", "results"):
        shutil.copytree(getattr(executed, name) / "tiny", folder / name / "tiny", ignore=shutil.ignore_patterns("notebooks", ".*"))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): emphase.files.file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def check_message(done: dict, expected: str, folder: Path) -> None:
    """One error of the workbook's own, that says what was expected, and names no folder of this machine."""
    assert done["status"] == 1, done
    assert "Traceback" not in done["error"], done["error"]
    message = done["error"].strip()
    assert re.match(r"\w+Error: ", message), message
    assert len(re.findall(r"^\w+Error: ", message, re.MULTILINE)) == 1, message
    assert re.search(expected, message), message
    assert str(folder) not in message, message
    assert len(message) < 6000


def check_result(path: Path, status: str) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} in {path.name}")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["status"] == status


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_message_or_an_honest_result(case, tmp_path, server, good, monkeypatch):
    step, breaks, expected = CASES[case]
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    given = parameters_of(tmp_path, step) | (breaks(tmp_path / "data" / "tiny") or {})
    if step == "00_demo_data":
        given["data_dir"] = str(tmp_path / "new")
    before = contents(tmp_path / "results")
    done = server.run(step, given)
    assert done["seconds"] < SECONDS and done["megabytes"] < 1500, done
    assert not list(tmp_path.rglob(MARK)) and "Zen of Python" not in done["printed"], "code of the sample ran"
    if expected in ("ok", "not_acquired"):
        assert done["status"] == 0, done["error"]
        name = f"tiny/{step}.json" if step in helpers.STEPS else "08_comparison.json"
        check_result(tmp_path / "results" / name, expected)
    else:
        check_message(done, expected, tmp_path)
        assert contents(tmp_path / "results") == before


@pytest.mark.skipif(not VENDOR.is_dir(), reason="../shared/realdata is not here")
@pytest.mark.parametrize("file", FORMATS)
def test_a_recorded_file_that_is_cut_or_has_flipped_bits_is_told_by_the_gate(file, tmp_path, server):
    """Every format, as the image or the scan of a sample: cut in its header, in the middle, and shortly before its end; and flipped."""
    whole = (VENDOR / file).read_bytes()
    broken = {f"cut_{percent}": whole[: percent * len(whole) // 100] for percent in (1, 50, 98)}
    broken |= {f"flipped_{seed}": flipped(whole, seed, count) for seed, count in enumerate((4, 40, 400))}
    for name, content in broken.items():
        sample = tmp_path / "data" / name
        sample.mkdir(parents=True)
        (sample / file).write_bytes(content)
        kind, more = ("ped", {"precession_deg": 0.5, "phases": ["layered"]}) if Path(file).suffix in SCANS else ("haadf", {})
        acquisitions = {kind: {"file": file, "beam_energy_keV": 200, **more}}
        (sample / "sample.yaml").write_text(yaml.safe_dump({"id": name, "label": name, "acquisitions": acquisitions}))
        done = server.run(GATE, parameters_of(tmp_path, GATE) | {"sample_id": name})
        assert done["seconds"] < SECONDS and done["megabytes"] < 1500, done
        if done["status"] == 0:
            check_result(tmp_path / "results" / name / f"{GATE}.json", "not_acquired")  # no lamella
        else:
            check_message(done, re.escape(file), tmp_path)


@pytest.mark.parametrize("case", ["yaml: billion laughs", "hostile: an axis by a formula", "bomb: an image"])
def test_papermill_ends_alike(case, tmp_path, good):
    step, breaks, expected = CASES[case]
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    given = parameters_of(tmp_path, step) | (breaks(tmp_path / "data" / "tiny") or {})
    before = contents(tmp_path / "results")
    reason = alone(step, tmp_path / "run", given)
    assert not list(tmp_path.rglob(MARK))
    if expected == "ok":
        assert reason is None
    else:
        assert re.search(expected, reason)
        assert contents(tmp_path / "results") == before
