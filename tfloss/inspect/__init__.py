"""What a traced step holds: ops, random ops that can't be saved, what XLA can't compile."""
