"""Every release of the family as data, and the ways in which its files reach this machine.

catalogue  what is known (family.toml)  ·  store  what is here  ·  pull  from known to here, by wheel or hub
"""
