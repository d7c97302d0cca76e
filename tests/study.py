"""What the tests share: the study's crystals, its simulated recordings, and where recorded data lie."""

from functools import partial

import emphase
import helpers

#: Recordings that are not part of the project; tests on them are skipped where they are absent.
SHARED = helpers.PROJECT_ROOT.parent / "shared"


#: Zone axes of NCM, of the layer and of LLZO in a simulated interface.
INTERFACE_ZONES = ((1, 0, 0), (1, 1, 0), (1, 1, 1))


def crystals(*names):
    """Crystal structures of the study, by name; all that an interface may show if none is named."""
    return {name: helpers.phase_crystal(name) for name in names or (*helpers.INTERFACE_PHASES, "spinel_m3o4")}


def cryo_stack(rng, *args, drift_px=0.5, jumps=2, within_frame=False, jitter_px=0.0, **options):
    """A drifting stack of LLZO along [001], or of another ``scene``."""
    garnet = partial(emphase.simulate.lattice_scene, crystal=helpers.phase_crystal("llzo"))
    motion = emphase.simulate.StackMotion(drift_px, jumps, within_frame, jitter_px)
    return emphase.simulate.drifting_stack(rng, *args, **{"scene": garnet, "motion": motion} | options)


def interface_image(
    rng, shape=(1024, 1024), pixel_size_nm=0.02, layer_nm=4.0, phase="rocksalt", *, roughness_nm=0.3, zones=None, **options
):
    """A bright-field image of the interface of NCM and LLZO, with a layer of a phase."""
    scene = emphase.simulate.InterfaceScene(helpers.INTERFACE_SIDES, phase, layer_nm, zones or INTERFACE_ZONES, roughness_nm)
    return emphase.simulate.interface_image(rng, crystals(), scene, shape, pixel_size_nm, **options)


#: The matching as the study does it: layered, spinel and rocksalt are one family.
map_scan = partial(emphase.ped.map_scan, families=helpers.FAMILIES)
index_scan = partial(emphase.ped.index.index_scan, families=helpers.FAMILIES)
boundary_relations = partial(emphase.ped.grains.boundary_relations, families=helpers.FAMILIES)
run_spike_ins = partial(emphase.fractions.run_spike_ins, families=helpers.FAMILIES)
analyse_interface = partial(emphase.interface.analyse_interface, sides=helpers.INTERFACE_SIDES)
