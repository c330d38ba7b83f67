"""Songs of our own to learn from: a composer, a singer, a band, and the frame-exact score of all they do."""
