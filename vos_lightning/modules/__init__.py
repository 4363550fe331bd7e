"""One LightningModule a paper; what they have in common is in :mod:`vos_lightning.modules.base`."""
