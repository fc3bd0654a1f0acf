/*
 * What C reaches on the rings of bench/datapath.ts and of two guests: the limits that ptnet is compared with.
 *
 *   rings copy|swap|vale PROCESSES SIZE SLOTS BATCH ADDRESSES MS     prints the millions of packets per second received
 *
 * With MS 0 (2 or 3 processes) it runs until it is killed, and prints every millisecond how long it has run, in us, and how
 * many packets were received: for bench/slices.ts.
 *
 * copy: one memcpy of each packet from ring to ring. swap: the slots' buffers exchanged, no byte touched. vale: the
 * forwarding step of VALE (vale.c). PROCESSES 1: application and host are one thread. 2: the application of both rings is
 * a process of its own, on the other CPU, and both poll. 3: sender and receiver are a process each, both on the other CPU,
 * and yield when there is nothing to do.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"
#include "rings.h"

static struct {
	uint32_t stop;
	uint64_t received;
} *shared;

static uint32_t size, num_slots, batch, addresses;
static double ms;
static struct kring tx, rx;
static struct vale *vale;

static void *memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED) die("mmap");
	return p;
}

static void pin(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* Addresses of a frame: source in bytes 6 to 11, destination before. */
static void put_mac(uint8_t *p, uint32_t n)
{
	uint8_t mac[6] = { 2, 0, 0, 0, (uint8_t)(n >> 8), (uint8_t)n };
	memcpy(p, mac, 6);
}

static void ring_new(struct kring *k, bool is_tx)
{
	memset(k, 0, sizeof(*k));
	k->ring = memory(sizeof(struct shared_ring) + num_slots * sizeof(struct slot));
	k->num_slots = num_slots;
	k->num_bufs = num_slots + FIRST_BUF;
	k->bufs = memory((size_t)k->num_bufs * BUF_SIZE);
	for (uint32_t i = 0; i < num_slots; i++) {
		uint8_t *p = k->bufs + (size_t)(i + FIRST_BUF) * BUF_SIZE;
		memset(p, (int)i, size);
		put_mac(p, 0x4000 + i % addresses);
		put_mac(p + 6, 0x8000 + i % addresses);
		k->ring->slots[i].buf_idx = i + FIRST_BUF;
		k->ring->slots[i].len = (uint16_t)(is_tx ? size : 0);
	}
	k->hwtail = is_tx ? num_slots - 1 : 0;
	k->ring->ktoa.hwtail = k->hwtail;
}

/* The receiver's port learns the addresses that packets are sent to. */
static void teach(void)
{
	struct kring other;
	ring_new(&other, true);
	for (uint32_t i = 0; i < num_slots; i++) {
		uint8_t *p = other.bufs + (size_t)(i + FIRST_BUF) * BUF_SIZE;
		memset(p, 0xff, 6);
		put_mac(p + 6, 0x4000 + i % addresses);
	}
	struct kring *from = &other;
	word_store(&from->ring->atok.cur, num_slots - 1);
	word_store(&from->ring->atok.head, num_slots - 1);
	vale_step(vale, from, 1);
}

static uint32_t step(int how)
{
	if (how == 'v') return vale_step(vale, &tx, 0);
	if (!tx_prologue(&tx)) return 0;
	rx_prologue(&rx);
	uint32_t todo = distance(tx.hwcur, tx.rhead, num_slots), space = rx_space(&rx);
	if (todo > space) todo = space;
	for (uint32_t i = 0; i < todo; i++) {
		struct slot *from = &tx.ring->slots[tx.hwcur], *to = &rx.ring->slots[rx.hwtail];
		uint64_t w = slot_load(from);
		uint32_t idx = (uint32_t)w, len = (uint32_t)(w >> 32) & 0xffff, mine = (uint32_t)slot_load(to);
		if (buf_valid(idx, tx.num_bufs) && len <= BUF_SIZE && buf_valid(mine, rx.num_bufs)) {
			if (how == 'c') {
				memcpy(rx.bufs + (size_t)mine * BUF_SIZE, tx.bufs + (size_t)idx * BUF_SIZE, len);
			} else {
				from->buf_idx = mine;
				to->buf_idx = idx;
			}
			slot_store(to, len, 1u << NS_RFRAGS_SHIFT);
		}
		if (++tx.hwcur == num_slots) tx.hwcur = 0;
		if (++rx.hwtail == num_slots) rx.hwtail = 0;
	}
	tx.hwtail = tx.hwcur == 0 ? num_slots - 1 : tx.hwcur - 1;
	publish(&tx);
	publish(&rx);
	return todo;
}

/* The application's positions; it sends a batch if there is room, and takes what came. */
static uint32_t head, rx_head;

static bool send_batch(bool touch)
{
	uint32_t room = distance(head, word_load(&tx.ring->ktoa.hwtail), num_slots);
	if (room < batch) return false;
	for (uint32_t i = 0; i < batch; i++) {
		if (touch) slot_store(&tx.ring->slots[head], size, 0);
		if (++head == num_slots) head = 0;
	}
	word_store(&tx.ring->atok.cur, head);
	word_store(&tx.ring->atok.head, head);
	return true;
}

static uint32_t receive(bool touch)
{
	uint32_t tail = word_load(&rx.ring->ktoa.hwtail), got = distance(rx_head, tail, num_slots), bytes = 0;
	if (got == 0) return 0;
	if (touch) {
		for (uint32_t i = rx_head; i != tail; i = i + 1 == num_slots ? 0 : i + 1) {
			bytes += (uint32_t)(slot_load(&rx.ring->slots[i]) >> 32) & 0xffff;
		}
		if (bytes != got * size) abort();
	}
	rx_head = tail;
	word_store(&rx.ring->atok.cur, tail);
	word_store(&rx.ring->atok.head, tail);
	return got;
}

static double one_thread(int how, double limit)
{
	uint64_t received = 0;
	double start = now_us() / 1e3, elapsed;
	do {
		for (uint32_t i = 0; i < 20000 / batch + 1; i++) {
			send_batch(false);
			received += receive(false);
			step(how);
		}
		elapsed = now_us() / 1e3 - start;
	} while (elapsed < limit);
	return (double)received / elapsed / 1e3;
}

static bool stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
}

/* The receiver is this process; the host is another one, and the sender too if there are three. */
static double several_processes(int how, int processes, double limit)
{
	pid_t host = fork();
	if (host < 0) die("fork");
	if (host == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(1);
		while (!stopped()) step(how);
		_exit(0);
	}
	pin(0);
	bool sends = processes == 2;
	pid_t sender = sends ? 0 : fork();
	if (sender < 0) die("fork");
	if (!sends && sender == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (!stopped()) {
			if (!send_batch(true)) sched_yield();
		}
		_exit(0);
	}
	uint64_t received = 0;
	double start = now_us() / 1e3, elapsed, begin = 0, said = 0;
	do {
		for (uint32_t i = 0; i < 1000; i++) {
			if (sends) send_batch(true);
			uint32_t got = receive(true);
			received += got;
			if (!sends && got == 0) {
				sched_yield();
				break;
			}
		}
		elapsed = now_us() / 1e3 - start;
		if (limit == 0) {
			if (elapsed - said < 1) continue;
			said = elapsed;
			printf("%.0f %llu\n", elapsed * 1e3, (unsigned long long)received);
			fflush(stdout);
			continue;
		}
		if (begin == 0 && elapsed > limit / 10) {
			begin = elapsed;
			received = 0;
		}
	} while (limit == 0 || begin == 0 || elapsed - begin < limit);
	__atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
	waitpid(host, NULL, 0);
	if (!sends) waitpid(sender, NULL, 0);
	return (double)received / (elapsed - begin) / 1e3;
}

int main(int argc, char **argv)
{
	if (argc != 8 || !strchr("csv", argv[1][0])) {
		fprintf(stderr, "usage: rings copy|swap|vale PROCESSES SIZE SLOTS BATCH ADDRESSES MS\n");
		return 2;
	}
	int how = argv[1][0], processes = atoi(argv[2]);
	size = (uint32_t)atoi(argv[3]);
	num_slots = (uint32_t)atoi(argv[4]);
	batch = (uint32_t)atoi(argv[5]);
	addresses = (uint32_t)atoi(argv[6]);
	ms = atof(argv[7]);
	if (size < 32 || size > BUF_SIZE || batch < 1 || batch >= num_slots || addresses < 1 || addresses > num_slots) {
		fprintf(stderr, "rings: 32 <= SIZE <= 2112, 1 <= BATCH < SLOTS, 1 <= ADDRESSES <= SLOTS\n");
		return 2;
	}
	if (ms == 0 && processes == 1) {
		fprintf(stderr, "rings: MS 0 needs 2 or 3 processes\n");
		return 2;
	}
	shared = memory(sizeof(*shared));
	ring_new(&tx, true);
	ring_new(&rx, false);
	if (how == 'v') {
		struct kring *none = malloc(sizeof(*none));
		ring_new(none, false);
		vale = vale_new(none, &rx);
		teach();
	}
	if (processes == 1) one_thread(how, ms / 10);
	printf("%.3f\n", processes == 1 ? one_thread(how, ms) : several_processes(how, processes, ms));
	return 0;
}
