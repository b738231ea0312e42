"""The operators, one module per family; `core.protocols.Operator` is the contract that each must keep."""
