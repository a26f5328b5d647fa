// One decode step of a dense Qwen3 voice in one call, float32 arithmetic, AVX2 + FMA. A prototype.
// Vectors run over outputs and each sum over its inputs in order, so that a row's bits do not
// depend on how many rows there are. Weights: panels [n / 16][k][16], float32, or bfloat16 whose
// 32-bit words hold outputs j (low half) and j + 8 (high half): a shift and a mask widen them.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

typedef __m256 V;
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ALL _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define UNROLL _Pragma("GCC unroll 16")

struct Matrix { int n = 0, k = 0; char *w = nullptr; };
struct Layer { Matrix qkv, out, gate_up, down; const float *norm_in, *norm_mid, *norm_q, *norm_k; };
struct Model {
    int d, heads, kv, inter, bf16;
    float eps;
    std::vector<Layer> layers;
    std::vector<Matrix> blocks;
    const float *norm, *embed, *cos, *sin;
    std::vector<float> x, y, qkv, seen, wide, scores, logits;
};
static const int HD = 64;

static void *allocate(size_t bytes) {  // huge pages: 28 MB are 6,800 small ones
    size_t size = (bytes + (2 << 20) - 1) >> 21 << 21;
    void *at = aligned_alloc(2 << 20, size);
    madvise(at, size, MADV_HUGEPAGE);
    return at;
}

static void pack(Matrix &m, const float *w, int n, int k, bool bf16) {
    m.n = n, m.k = k;
    size_t panels = (n + 15) / 16, word = bf16 ? 2 : 4;
    m.w = (char *)allocate(panels * 16 * k * word);
    for (size_t p = 0; p < panels; p++)
        for (int i = 0; i < k; i++)
            for (int j = 0; j < 16; j++) {
                int o = p * 16 + j;
                float f = o < n ? w[(size_t)o * k + i] : 0;
                size_t at = (p * k + i) * 16;
                if (!bf16) { ((float *)m.w)[at + j] = f; continue; }
                uint32_t bits;
                memcpy(&bits, &f, 4);
                bits += 0x7fff + (bits >> 16 & 1);  // nearest even; nothing where it is bfloat16
                ((uint16_t *)m.w)[at + 2 * (j % 8) + j / 8] = bits >> 16;
            }
}

template <int R, int P, bool BF>
static inline void tile(const float *x, int ldx, const char *w, int k, float *y, int ldy, bool add) {
    V a[R][2 * P];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < 2 * P; c++) a[r][c] = _mm256_setzero_ps();
    const size_t panel = (size_t)k * 16 * (BF ? 2 : 4);
    for (int i = 0; i < k; i++) {
        V b[2 * P];
        UNROLL for (int p = 0; p < P; p++) {
            const char *at = w + p * panel + (size_t)i * (BF ? 32 : 64);
            if (BF) {
                __m256i v = _mm256_load_si256((const __m256i *)at);
                b[2 * p] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
                b[2 * p + 1] = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff0000)));
            } else {
                b[2 * p] = _mm256_load_ps((const float *)at);
                b[2 * p + 1] = _mm256_load_ps((const float *)at + 8);
            }
            if (R == 1) _mm_prefetch(at + 1024, _MM_HINT_T0);
        }
        UNROLL for (int r = 0; r < R; r++) {
            V e = _mm256_broadcast_ss(x + (size_t)r * ldx + i);
            UNROLL for (int c = 0; c < 2 * P; c++) a[r][c] = FMA(e, b[c], a[r][c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < 2 * P; c++) {
        float *to = y + (size_t)r * ldy + 8 * c;
        STORE(to, add ? _mm256_add_ps(a[r][c], LOAD(to)) : a[r][c]);
    }
}

// y[rows][n] (+)= x[rows][k] * w; y has room for whole panels.
template <bool BF>
static void multiply(const Matrix &m, const float *x, int ldx, float *y, int ldy, int rows, bool add) {
    const size_t panel = (size_t)m.k * 16 * (BF ? 2 : 4);
    int panels = (m.n + 15) / 16, p = 0;
#define TILE(R, P) tile<R, P, BF>(x + (size_t)r * ldx, ldx, m.w + p * panel, m.k, y + (size_t)r * ldy + 16 * p, ldy, add)
    if (rows == 1) {
        const int r = 0;
        for (; p + 4 <= panels; p += 4) TILE(1, 4);
        for (; p < panels; p++) TILE(1, 1);
        return;
    }
    for (; p < panels; p++)
        for (int r = 0, left = rows; left > 0;) {
            int t = left >= 6 ? 6 : left;
            switch (t) {
                case 6: TILE(6, 1); break;
                case 5: TILE(5, 1); break;
                case 4: TILE(4, 1); break;
                case 3: TILE(3, 1); break;
                case 2: TILE(2, 1); break;
                default: TILE(1, 1);
            }
            r += t, left -= t;
        }
}
static void product(const Model &m, const Matrix &w, const float *x, int ldx, float *y, int ldy, int rows, bool add = false) {
    m.bf16 ? multiply<true>(w, x, ldx, y, ldy, rows, add) : multiply<false>(w, x, ldx, y, ldy, rows, add);
}

static inline float sum(V v) {
    float f[8];
    STORE(f, v);
    return ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
}
static inline V exp8(V x) {
    x = _mm256_max_ps(_mm256_min_ps(x, ALL(88.0f)), ALL(-87.0f));
    V n = _mm256_round_ps(_mm256_mul_ps(x, ALL(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    V r = _mm256_fnmadd_ps(n, ALL(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, ALL(-2.12194440e-4f), r);
    V p = FMA(ALL(1.9875691500e-4f), r, ALL(1.3981999507e-3f));
    p = FMA(p, r, ALL(8.3334519073e-3f));
    p = FMA(p, r, ALL(4.1665795894e-2f));
    p = FMA(p, r, ALL(1.6666665459e-1f));
    p = FMA(p, r, ALL(5.0000001201e-1f));
    p = _mm256_add_ps(FMA(p, _mm256_mul_ps(r, r), r), ALL(1.0f));
    __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(e));
}
static __attribute__((noinline)) void normed(const float *x, const float *w, float *y, int n, float eps) {
    V s = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) s = FMA(LOAD(x + i), LOAD(x + i), s);
    V by = ALL(1.0f / std::sqrt(sum(s) / n + eps));
    for (int i = 0; i < n; i += 8) STORE(y + i, _mm256_mul_ps(_mm256_mul_ps(LOAD(x + i), by), LOAD(w + i)));
}
static __attribute__((noinline)) void turn(float *h, const float *w, const float *cos, const float *sin, float eps) {
    float n[HD];
    normed(h, w, n, HD, eps);
    for (int i = 0; i < HD; i += 8)  // the sign of rotate_half is in the table of sines
        STORE(h + i, FMA(LOAD(n + (i + HD / 2) % HD), LOAD(sin + i), _mm256_mul_ps(LOAD(n + i), LOAD(cos + i))));
}

// One row's head group: q[group][64] over `count` positions; s holds group * (count + 8) scores.
static __attribute__((noinline)) void attend(const float *q, const float *keys, const float *values, int count, int group, float *s, float *out) {
    int ld = (count + 7) / 8 * 8;
    for (int g = 0; g < group; g++) {
        V e[8], top = ALL(-INFINITY), total = _mm256_setzero_ps();
        float *sg = s + g * ld;
        UNROLL for (int c = 0; c < 8; c++) e[c] = LOAD(q + g * HD + 8 * c);
        for (int p = 0; p < count; p += 4) {  // four at a time; those beyond the last are the last
            V a[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const float *k = keys + (size_t)std::min(p + j, count - 1) * HD;
                V lo = _mm256_mul_ps(e[0], LOAD(k)), hi = _mm256_mul_ps(e[4], LOAD(k + 32));
                UNROLL for (int c = 1; c < 4; c++) lo = FMA(e[c], LOAD(k + 8 * c), lo), hi = FMA(e[c + 4], LOAD(k + 32 + 8 * c), hi);
                a[j] = _mm256_add_ps(lo, hi);
            }
            V t = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
            __m128 f = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
            _mm_storeu_ps(sg + p, _mm_mul_ps(f, _mm_set1_ps(0.125f)));
        }
        for (int p = count; p < ld; p++) sg[p] = -1e30f;  // exp8 gives 1e-38: nothing
        for (int p = 0; p < ld; p += 8) top = _mm256_max_ps(top, LOAD(sg + p));
        float f[8];
        STORE(f, top);
        V most = ALL(*std::max_element(f, f + 8));
        for (int p = 0; p < ld; p += 8) {
            V v = exp8(_mm256_sub_ps(LOAD(sg + p), most));
            STORE(sg + p, v);
            total = _mm256_add_ps(total, v);
        }
        V o[8];
        UNROLL for (int c = 0; c < 8; c++) o[c] = _mm256_setzero_ps();
        for (int p = 0; p < count; p++) {
            V w = ALL(sg[p]);
            UNROLL for (int c = 0; c < 8; c++) o[c] = FMA(w, LOAD(values + (size_t)p * HD + 8 * c), o[c]);
        }
        V by = ALL(1.0f / sum(total));
        UNROLL for (int c = 0; c < 8; c++) STORE(out + g * HD + 8 * c, _mm256_mul_ps(o[c], by));
    }
}

static int choose(float *l, int n, float temperature, float top_p, float uniform) {
    float most = -INFINITY;
    int best = 0;
    for (int i = 0; i < n; i++) if (l[i] > most) most = l[i], best = i;
    if (temperature == 0) return best;
    std::vector<float> p((n + 7) / 8 * 8, 0);
    std::copy(l, l + n, p.begin());
    std::fill(p.begin() + n, p.end(), -INFINITY);
    V total = _mm256_setzero_ps(), by = ALL(1 / temperature);
    for (size_t i = 0; i < p.size(); i += 8) {
        V v = exp8(_mm256_mul_ps(_mm256_sub_ps(LOAD(&p[i]), ALL(most)), by));
        STORE(&p[i], v);
        total = _mm256_add_ps(total, v);
    }
    float all = sum(total), mass = 0, nucleus = top_p * all;
    std::vector<std::pair<float, int>> c;
    for (float least : {1e-3f, 0.0f}) {
        c.clear(), mass = 0;
        for (int i = 0; i < n; i++) if (p[i] >= least) c.push_back({-p[i], i});
        for (auto &e : c) mass -= e.first;
        if (mass >= nucleus) break;
    }
    std::sort(c.begin(), c.end());
    size_t last = 0;
    for (mass = -c[0].first; mass < nucleus && last + 1 < c.size(); mass -= c[++last].first) {}
    float target = uniform * mass, sofar = 0;
    for (size_t i = 0; i < last; i++) if ((sofar -= c[i].first) > target) return c[i].second;
    return c[last].second;
}

extern "C" {
Model *native_new(int layers, int d, int heads, int kv, int inter, int bf16, float eps, int blocks) {
    Model *m = new Model();
    m->d = d, m->heads = heads, m->kv = kv, m->inter = inter, m->bf16 = bf16, m->eps = eps;
    m->layers.resize(layers), m->blocks.resize(blocks);
    const int most = 16, wide = 2 * inter + 16;
    m->x.resize(most * d), m->y.resize(most * std::max(d, inter)), m->wide.resize(most * wide);
    m->qkv.resize(most * (heads + 2 * kv) * HD), m->seen.resize(most * heads * HD);
    return m;
}
void native_layer(Model *m, int at, const float *qkv, const float *out, const float *gate_up, const float *down,
                  const float *a, const float *b, const float *q, const float *k) {
    Layer &l = m->layers[at];
    pack(l.qkv, qkv, (m->heads + 2 * m->kv) * HD, m->d, m->bf16), pack(l.out, out, m->d, m->heads * HD, m->bf16);
    pack(l.gate_up, gate_up, 2 * m->inter, m->d, m->bf16), pack(l.down, down, m->d, m->inter, m->bf16);
    l.norm_in = a, l.norm_mid = b, l.norm_q = q, l.norm_k = k;
}
void native_block(Model *m, int at, const float *rows, int n) { pack(m->blocks[at], rows, n, m->d, m->bf16); }
void native_rest(Model *m, const float *norm, const float *embed, const float *cos, const float *sin) {
    m->norm = norm, m->embed = embed, m->cos = cos, m->sin = sin;
}

// tokens[slot] is read and replaced. arena [2 * layers][kv][arena_rows][64]; first[r]: a slot's first row.
void native_step(Model *m, float *arena, int64_t arena_rows, int rows, int64_t *tokens, const int64_t *slots,
                 const int64_t *positions, const int64_t *first, const int *block, const int64_t *bases, const int *endless,
                 const float *temperature, const float *top_p, const float *uniforms, int64_t most_steps, const int64_t *steps, float *logits_out) {
    const int d = m->d, kv = m->kv, heads = m->heads, group = heads / kv, all = (heads + 2 * kv) * HD, inter = m->inter;
    float *x = m->x.data(), *y = m->y.data(), *h = m->qkv.data(), *wide = m->wide.data(), *seen = m->seen.data();
    int64_t longest = 0;
    for (int r = 0; r < rows; r++) {
        memcpy(x + r * d, m->embed + tokens[slots[r]] * d, 4 * d);
        longest = std::max(longest, positions[r]);
    }
    if ((int64_t)m->scores.size() < group * (longest + 16)) m->scores.resize(2 * group * (longest + 16));
    for (size_t at = 0; at < m->layers.size(); at++) {
        const Layer &l = m->layers[at];
        for (int r = 0; r < rows; r++) normed(x + r * d, l.norm_in, y + r * d, d, m->eps);
        product(*m, l.qkv, y, d, h, all, rows);
        for (int r = 0; r < rows; r++) {
            float *own = h + r * all;
            const float *cos = m->cos + positions[r] * HD, *sin = m->sin + positions[r] * HD;
            for (int i = 0; i < heads + kv; i++) turn(own + i * HD, i < heads ? l.norm_q : l.norm_k, cos, sin, m->eps);
            for (int i = 0; i < kv; i++) {
                float *keys = arena + ((2 * at * kv + i) * arena_rows + first[r]) * HD, *values = keys + kv * arena_rows * HD;
                memcpy(keys + positions[r] * HD, own + (heads + i) * HD, 4 * HD);
                memcpy(values + positions[r] * HD, own + (heads + kv + i) * HD, 4 * HD);
                attend(own + i * group * HD, keys, values, positions[r] + 1, group, m->scores.data(), seen + (r * heads + i * group) * HD);
            }
        }
        product(*m, l.out, seen, heads * HD, x, d, rows, true);
        for (int r = 0; r < rows; r++) normed(x + r * d, l.norm_mid, y + r * d, d, m->eps);
        product(*m, l.gate_up, y, d, wide, 2 * inter, rows);
        for (int r = 0; r < rows; r++) {
            const float *g = wide + r * 2 * inter;
            for (int i = 0; i < inter; i += 8) {
                V v = LOAD(g + i), e = _mm256_add_ps(exp8(_mm256_sub_ps(_mm256_setzero_ps(), v)), ALL(1));
                STORE(y + r * inter + i, _mm256_mul_ps(_mm256_div_ps(v, e), LOAD(g + inter + i)));
            }
        }
        product(*m, l.down, y, inter, x, d, rows, true);
    }
    for (int r = 0; r < rows; r++) normed(x + r * d, m->norm, y + r * d, d, m->eps);
    for (size_t b = 0; b < m->blocks.size(); b++) {
        int own[16], count = 0;
        for (int r = 0; r < rows; r++) if (block[r] == (int)b) {
            memcpy(seen + count * d, y + r * d, 4 * d);
            own[count++] = r;
        }
        if (!count) continue;
        const int n = m->blocks[b].n, ld = (n + 15) / 16 * 16;
        m->logits.resize(16 * ld);
        product(*m, m->blocks[b], seen, d, m->logits.data(), ld, count);
        for (int i = 0; i < count; i++) {
            int r = own[i];
            float *l = m->logits.data() + i * ld;
            if (endless[r]) l[0] = -INFINITY;
            if (logits_out) memcpy(logits_out + (size_t)r * n, l, 4 * n);
            tokens[slots[r]] = bases[r] + choose(l, n, temperature[r], top_p[r], uniforms[slots[r] * most_steps + steps[r]]);
        }
    }
}
}
