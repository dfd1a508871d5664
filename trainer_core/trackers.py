"""Where a run may send its metrics besides its files, and the package that each tracker needs. Torch-free."""

from importlib.util import find_spec

# The packages that each value of `report_to` can use, and what installs one of them.
PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "mlflow": (("mlflow",), "mlflow-skinny"),
}


def installed() -> list[str]:
    """The trackers that runs on this machine can use."""
    return [name for name, (packages, _) in PACKAGES.items() if any(find_spec(package) for package in packages)]
