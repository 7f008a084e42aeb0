"""What settings cost, before anything is spent: operations and memory, counted without computing."""
