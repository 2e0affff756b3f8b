"""Container images: references, manifests, layouts, registries, layers, encryption and signatures (OCI image and
distribution specifications 1.1). Loaded inside the guest: no imports here, and none of the modules runs anything at
import."""
