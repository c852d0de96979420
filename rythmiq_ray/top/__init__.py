"""``rythmiq top``: the console in a terminal. Rows come from queue/, what is shown of them is text and never markup."""
