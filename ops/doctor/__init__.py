"""What `ordermesh doctor` looks at: this machine, and the stack that runs on it.

A check looks, changes nothing and says one of three words; whatever is not well comes with what to do about
it. A check that cannot look says so as a finding: the doctor itself never fails.
"""
