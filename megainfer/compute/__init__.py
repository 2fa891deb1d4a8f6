"""The operations that models are made of, one list of them and implementations side by side.

`reference` is torch, written to be obviously right; it runs on any device and is what the others
are tested against. An implementation is a package that exports these functions with the same
signatures (shapes and dtypes are in the reference's docstrings):

- norms: `rms_norm`
- rotary: `rotary_table`, `rotate`
- attention: `write_cache`, `decode_attention`, `prefill_attention`
- routing: `route`, `expert_homes`, `scatter_plan`
- experts: `feed_forward`, `group_by_expert`, `grouped_feed_forward`
- sampling: `choose`

`cpu` is C++ and has the experts so far, as `LayerExperts` (see `experts`), which keep their weights
packed; `selection` decides which implementation serves.

Combining replies into the residual stream belongs to M2N (`AttentionPort.combine`).
"""
