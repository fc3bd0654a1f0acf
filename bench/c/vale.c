/*
 * VALE's forwarding step in C: the same table, hash, checks, flags and passes as src/datapath (vale.ts, table.ts), to
 * compare with. Packets of one slot and equal (no) VirtIO headers only; packets of several are counted as bad.
 */
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "rings.h"

#define HASH_BITS 10
#define GROUP 256u
#define BATCH 512u
#define MAX_PORTS 254u
#define DST_FLOOD MAX_PORTS
#define MAC_MASK 0xffffffffffffull

struct fwd {
	const uint8_t *src;
	uint16_t len;
	uint8_t flags;
};

struct vale {
	uint64_t ht[1 << HASH_BITS];
	struct kring *rx[MAX_PORTS];
	uint32_t ports;
	struct fwd ft[GROUP];
	bool dirty[MAX_PORTS];
};

struct vale *vale_new(struct kring *rx0, struct kring *rx1)
{
	struct vale *v = aligned_alloc(64, (sizeof(*v) + 63) & ~(size_t)63);
	memset(v, 0, sizeof(*v));
	v->rx[0] = rx0;
	v->rx[1] = rx1;
	v->ports = 2;
	return v;
}

static inline uint32_t rthash(uint64_t mac)
{
	return (uint32_t)(((mac << 16) * 0x9e3779b97f4a7c15ull) >> (64 - HASH_BITS));
}

static inline void copy_frame(uint8_t *restrict dst, const uint8_t *restrict src, uint32_t len)
{
	if (len - 32 > 32) {
		memcpy(dst, src, len);
		return;
	}
#ifdef __AVX2__
	__m256i a = _mm256_loadu_si256((const __m256i *)(const void *)src);
	__m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(src + len - 32));
	_mm256_storeu_si256((__m256i *)(void *)dst, a);
	_mm256_storeu_si256((__m256i *)(void *)(dst + len - 32), b);
#else
	__m128i a = _mm_loadu_si128((const __m128i *)(const void *)src);
	__m128i b = _mm_loadu_si128((const __m128i *)(const void *)(src + 16));
	__m128i c = _mm_loadu_si128((const __m128i *)(const void *)(src + len - 32));
	__m128i d = _mm_loadu_si128((const __m128i *)(const void *)(src + len - 16));
	_mm_storeu_si128((__m128i *)(void *)dst, a);
	_mm_storeu_si128((__m128i *)(void *)(dst + 16), b);
	_mm_storeu_si128((__m128i *)(void *)(dst + len - 32), c);
	_mm_storeu_si128((__m128i *)(void *)(dst + len - 16), d);
#endif
}

static uint32_t scan(struct vale *v, struct kring *tx, uint32_t j, uint32_t *entries)
{
	uint32_t n = 0, bytes = 0;
	while (j != tx->rhead && n < GROUP) {
		uint64_t w = slot_load(&tx->ring->slots[j]);
		uint32_t idx = (uint32_t)w, len = (uint32_t)(w >> 32) & 0xffff, flags = (uint32_t)(w >> 48);
		if (flags & NS_BUF_CHANGED) slot_store(&tx->ring->slots[j], len, flags & ~NS_BUF_CHANGED);
		if (buf_valid(idx, tx->num_bufs) && len >= 14 && len <= BUF_SIZE &&
		    !(flags & (NS_INDIRECT | NS_MOREFRAG))) {
			v->ft[n++] = (struct fwd){ tx->bufs + (size_t)idx * BUF_SIZE, (uint16_t)len, (uint8_t)flags };
			bytes += len;
		} else {
			tx->drop_bad++;
		}
		if (++j == tx->num_slots) j = 0;
	}
	tx->bytes += bytes;
	*entries = n;
	return j;
}

/* Learns where the packet of an entry comes from. Returns the port it goes to; DST_FLOOD or more: all. */
static inline uint64_t lookup(struct vale *v, uint32_t me, const struct fwd *f)
{
	uint64_t lo, hi;
	memcpy(&lo, f->src, 8);
	memcpy(&hi, f->src + 8, 8);
	uint64_t dmac = lo & MAC_MASK, smac = lo >> 48 | (hi & 0xffffffff) << 16;
	uint64_t learned = smac | (uint64_t)(me + 1) << 48, *e = &v->ht[rthash(smac)];
	if (*e != learned && !(smac & 1) && !(f->flags & NS_NO_LEARN)) *e = learned;
	uint64_t found = v->ht[rthash(dmac)] ^ dmac;
	return found & MAC_MASK ? DST_FLOOD : (found >> 48) - 1;
}

/*
 * Copies the packet of entry i, and what follows it to the same port: to `sure` without looking, from there on as far as
 * it goes to `dst`. Returns the entry after them.
 */
static uint32_t deliver(struct vale *v, uint32_t me, uint32_t to, uint64_t dst, uint32_t i, uint32_t sure, uint32_t n)
{
	struct kring *rx = v->rx[to];
	if (!v->dirty[to]) {
		v->dirty[to] = true;
		rx_prologue(rx);
	}
	uint32_t tail = rx->hwtail, space = rx_space(rx), packets = 0, bytes = 0;
	do {
		if (space == 0) {
			rx->drop_full++;
			continue;
		}
		struct slot *s = &rx->ring->slots[tail];
		uint32_t idx = (uint32_t)slot_load(s), len = v->ft[i].len;
		if (buf_valid(idx, rx->num_bufs)) {
			copy_frame(rx->bufs + (size_t)idx * BUF_SIZE, v->ft[i].src, len);
			slot_store(s, len, 1u << NS_RFRAGS_SHIFT);
			packets++;
			bytes += len;
		} else {
			slot_store(s, 0, 0);
			rx->drop_dst++;
		}
		space--;
		if (++tail == rx->num_slots) tail = 0;
	} while (++i < n && (i < sure || lookup(v, me, &v->ft[i]) == dst));
	rx->hwtail = tail;
	rx->packets += packets;
	rx->slots += packets;
	rx->bytes += bytes;
	return i;
}

static void forward(struct vale *v, struct kring *tx, uint32_t me, uint32_t n)
{
	for (uint32_t i = 0; i < n;) {
		uint64_t dst = lookup(v, me, &v->ft[i]);
		if (dst == me) {
			tx->drop_nodst++;
			i++;
		} else if (dst < DST_FLOOD) {
			i = deliver(v, me, (uint32_t)dst, dst, i, i, n);
		} else {
			uint32_t end = i + 1;
			while (end < n && lookup(v, me, &v->ft[end]) >= DST_FLOOD) end++;
			for (uint32_t p = 0; p < v->ports; p++) {
				if (p != me) deliver(v, me, p, 0, i, end, end);
			}
			i = end;
		}
	}
	tx->packets += n;
}

uint32_t vale_step(struct vale *v, struct kring *tx, uint32_t me)
{
	if (!tx_prologue(tx)) return 0;
	uint32_t n = tx->num_slots, j = tx->hwcur, todo = distance(j, tx->rhead, n);
	while (j != tx->rhead) {
		uint32_t done = 0;
		do {
			uint32_t entries, next = scan(v, tx, j, &entries);
			forward(v, tx, me, entries);
			done += distance(j, next, n);
			j = next;
		} while (j != tx->rhead && done < BATCH);
		tx->slots += done;
		tx->hwcur = j;
		tx->hwtail = j == 0 ? n - 1 : j - 1;
		publish(tx);
		for (uint32_t p = 0; p < v->ports; p++) {
			if (!v->dirty[p]) continue;
			v->dirty[p] = false;
			publish(v->rx[p]);
		}
	}
	return todo;
}
