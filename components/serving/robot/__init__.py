"""The robot gateway: the program beside an arm that moves it, within limits, when a person there has armed it."""
