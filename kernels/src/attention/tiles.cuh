// The list of blocks that the host makes of a batch's documents (cuda.rs, `tiles`).

// Queries of a block, and of the keys' blocks of the backward pass.
#define BLOCK 128

// Of a document: its first token and its length, and which of its blocks. A length of 0 is padding.
struct Tile {
    u32 begin, len, block, unused;
};

__device__ __forceinline__ Tile tile_at(const u32* tiles, int i) {
    const uint4 t = ((const uint4*)tiles)[i];
    return Tile{t.x, t.y, t.z, t.w};
}
