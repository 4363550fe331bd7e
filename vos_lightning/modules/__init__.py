"""One LightningModule for each paper; common parts are in :mod:`vos_lightning.modules.base`."""
