"""The pod-VM image: built bit for bit the same anywhere, from locked Debian packages and the guest's own code.

`lock` writes down which packages are meant, `build` makes the bundle, `load_bundle` and `inspect` read one,
`reference_values` says what a machine that boots it will measure as. Out of scope: running it (that is the host's
side) and deciding whether a measurement is acceptable (that is the verifier's).
"""

from cloister.imagetool.measure.shapes import COMMON_SHAPES, Prediction, Shape
from cloister.imagetool.podvm.build import PHASES, BuildRequest, build, lock
from cloister.imagetool.podvm.bundle import Inspection, Manifest, PodVMBundle, Reference, inspect, load_bundle
from cloister.imagetool.podvm.definition import default_definition
from cloister.imagetool.podvm.initrd import build_bare_initrd
from cloister.imagetool.podvm.reference import components, reference_values

__all__ = [
    "COMMON_SHAPES",
    "PHASES",
    "BuildRequest",
    "Inspection",
    "Manifest",
    "PodVMBundle",
    "Prediction",
    "Reference",
    "Shape",
    "build",
    "build_bare_initrd",
    "components",
    "default_definition",
    "inspect",
    "load_bundle",
    "lock",
    "reference_values",
]
