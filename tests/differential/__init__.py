"""Two builds of Flowstack, side by side: what one does to odd exchanges, the other does to the byte."""
