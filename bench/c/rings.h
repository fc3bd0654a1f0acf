/*
 * What the C limits share: rings, slots and CSB entries laid out as netmap's (net/netmap.h, net/netmap_virt.h), each
 * ring with buffers of its own in shared memory, and the host's private state of a ring.
 */
#ifndef RINGS_H
#define RINGS_H

#include <stdbool.h>
#include <stdint.h>

#define BUF_SIZE 2112u
#define FIRST_BUF 2u
#define NS_BUF_CHANGED 0x01u
#define NS_NO_LEARN 0x08u
#define NS_INDIRECT 0x10u
#define NS_MOREFRAG 0x20u
#define NS_RFRAGS_SHIFT 8

struct slot {
	uint32_t buf_idx;
	uint16_t len;
	uint16_t flags;
	uint64_t ptr;
};

/* Application to host, and host to application: a cache line each. */
struct atok {
	uint32_t head, cur, appl_need_kick, sync_flags;
} __attribute__((aligned(64)));

struct ktoa {
	uint32_t hwcur, hwtail, kern_need_kick;
} __attribute__((aligned(64)));

struct shared_ring {
	struct atok atok;
	struct ktoa ktoa;
	struct slot slots[];
};

/* Private to the host. */
struct kring {
	struct shared_ring *ring;
	uint8_t *bufs;
	uint32_t num_slots, num_bufs;
	uint32_t hwcur, hwtail, rhead;
	uint32_t signals;
	uint64_t packets, slots, bytes, drop_bad, drop_nodst, drop_full, drop_dst;
};

/* A slot's buf_idx, len and flags by one load, as the host must take them. */
static inline uint64_t slot_load(const struct slot *s)
{
	return __atomic_load_n((const uint64_t *)(const void *)s, __ATOMIC_RELAXED);
}

/* len and flags by one store. */
static inline void slot_store(struct slot *s, uint32_t len, uint32_t flags)
{
	__atomic_store_n((uint32_t *)(void *)&s->len, len | flags << 16, __ATOMIC_RELAXED);
}

static inline uint32_t word_load(const uint32_t *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static inline void word_store(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

/* Slots from a to b in ring order. */
static inline uint32_t distance(uint32_t a, uint32_t b, uint32_t n)
{
	return b >= a ? b - a : b + n - a;
}

static inline bool buf_valid(uint32_t idx, uint32_t bufs)
{
	return idx - FIRST_BUF < bufs - FIRST_BUF;
}

/* Takes the application's head (and cur) of a tx ring if they are valid. True if there is something to send. */
static inline bool tx_prologue(struct kring *tx)
{
	uint32_t n = tx->num_slots;
	uint32_t head = word_load(&tx->ring->atok.head);
	uint32_t cur = word_load(&tx->ring->atok.cur);
	if (head >= n || cur >= n) return false;
	uint32_t h = distance(tx->hwcur, head, n), c = distance(tx->hwcur, cur, n);
	if (h > c || c > distance(tx->hwcur, tx->hwtail, n)) return false;
	tx->rhead = head;
	return h != 0;
}

/* Takes back what the application of an rx ring released. */
static inline void rx_prologue(struct kring *rx)
{
	uint32_t n = rx->num_slots;
	uint32_t head = word_load(&rx->ring->atok.head);
	uint32_t cur = word_load(&rx->ring->atok.cur);
	if (head >= n || cur >= n) return;
	uint32_t h = distance(rx->hwcur, head, n), c = distance(rx->hwcur, cur, n);
	if (h <= c && c <= distance(rx->hwcur, rx->hwtail, n)) rx->hwcur = head;
}

/* Free slots of an rx ring. */
static inline uint32_t rx_space(const struct kring *rx)
{
	return rx->num_slots - 1 - distance(rx->hwcur, rx->hwtail, rx->num_slots);
}

/* hwcur, hwtail, barrier, appl_need_kick. */
static inline void publish(struct kring *k)
{
	word_store(&k->ring->ktoa.hwcur, k->hwcur);
	word_store(&k->ring->ktoa.hwtail, k->hwtail);
	if (word_load(&k->ring->atok.appl_need_kick)) k->signals++;
}

/* A VALE switch of two ports: vale.c. */
struct vale;
struct vale *vale_new(struct kring *rx0, struct kring *rx1);
/* Forwards what the application of `tx`, of port `me`, wants sent. Returns the slots. */
uint32_t vale_step(struct vale *v, struct kring *tx, uint32_t me);

#endif
