// What the kernels of attention on tensor cores share, whichever instructions they are made of.

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
// Tokens of a tile of the host's lists (cuda/list.rs).
#define BLOCK 128

// Of the scores, 1 / sqrt(K).
template <int K>
constexpr float SCALE = K == 64 ? 0.125f : 0.08838834764831845f;
