"""Three Kamailios on one bus, to look at: make demo."""
