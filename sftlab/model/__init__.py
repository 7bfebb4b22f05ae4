"""From a batch to an update: backbone, loss, optimizer, sharding and the LightningModule."""
