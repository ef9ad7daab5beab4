"""From a checkpoint to a published bundle: graphs, their agreement with eager, a model card, a manifest."""
