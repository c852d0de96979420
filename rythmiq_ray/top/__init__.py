"""``rythmiq top``: the console in a terminal. It reads rows through queue/ and shows them as text, never as markup."""
