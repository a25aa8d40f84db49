"""What any HTTP endpoint of mlxlab is made of, whatever it answers.

Knows nothing of mlxlab but its errors. Nothing is imported here, so that the parts
which need no web framework load none.
"""
