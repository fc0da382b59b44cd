"""kemi_dmq and Kamailio's own dmq.so, measured in the same run on real Kamailios."""
