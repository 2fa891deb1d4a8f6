"""What nodes compute: contracts, and implementations side by side.

A node asks one `backend.Backend` for its attention half (`half.ModelHalf`), its experts
(`experts.LayerExperts`) and its tokens (`tokens.TokenKernels`); nobody else knows which
implementation serves. `reference` is torch, written to be obviously right: it runs on any device,
and the others are tested against it. `cpu` is C++ with packed weights, `gpu` Triton. `selection`
opens the one that the plan names.

Combining replies into the residual stream belongs to M2N (`AttentionPort.combine`).
"""
