"""What is fitted: heads of mf, bert, the tuned encoder, the rival; and the loop that fits them."""
