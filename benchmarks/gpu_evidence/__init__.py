"""Evidence on a GPU: kernels, probes, arms, predictions and checks in resumable stages.

``python -m gpu_evidence`` (``make gpu``) works for one time budget, keeps what it has in a state file and goes on from
there when called again. ``--rehearse`` runs the same stages on the CPU with the tiny model.
"""
