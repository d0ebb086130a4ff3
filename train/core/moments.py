"""Adam's moments in fewer bits: bfloat16, or 8 bits in blocks.

Blockwise dynamic quantization: arXiv 2110.02861. A block of 128 entries along
the last dimension of a weight shares one fp32 scale, its largest magnitude, and
every entry is the nearest of 256 numbers that are spread over seven powers of
ten: few bits for the large ones, and some for the small. Blocks lie within the
shards of a weight, so that shards never ask each other.
Deviations: square roots of second moments are kept, whose range is half as many
powers of ten; bfloat16 is rounded to a random neighbour, for the step of a
slow moment is less than half of its last bit, and would be lost for good.
"""
