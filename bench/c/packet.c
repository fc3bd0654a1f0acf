/*
 * Packet sockets (packet(7)) as fast as system calls allow: 64 frames each.
 *
 *   packet send IF SIZE     sends until it is killed
 *   packet receive IF MS    millions of frames per second received, from the first one on
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "common.h"

enum { BATCH = 64, LONGEST = 2048, RECEIVE_BYTES = 4 << 20 };
static uint8_t frames[BATCH][LONGEST];
static struct iovec pieces[BATCH];
static struct mmsghdr messages[BATCH];

static void set(int s, int level, int name, int value, const char *what)
{
	if (setsockopt(s, level, name, &value, sizeof(value)) < 0) die(what);
}

static int packet_socket(const char *name, int protocol)
{
	int s = socket(AF_PACKET, SOCK_RAW, 0);
	if (s < 0) die("socket(AF_PACKET)");
	set(s, SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS");
	set(s, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES, "SO_RCVBUFFORCE");
	struct sockaddr_ll at = { .sll_family = AF_PACKET,
				  .sll_protocol = htons((uint16_t)protocol),
				  .sll_ifindex = (int)if_nametoindex(name) };
	if (bind(s, (struct sockaddr *)&at, sizeof(at)) < 0) die(name);
	return s;
}

static void send_all(int s, size_t size)
{
	/* IPv4 for nobody here: the stack at the other end drops it at once. */
	static const uint8_t header[ETH_HLEN] = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0 };
	for (int i = 0; i < BATCH; i++) {
		memcpy(frames[i], header, sizeof(header));
		pieces[i].iov_len = size;
	}
	for (;;) sendmmsg(s, messages, BATCH, 0);
}

static double receive(int s, double ms)
{
	uint64_t count = 0;
	double begin = 0, now = 0;
	while (begin == 0 || now - begin < ms * 1e3) {
		int n = recvmmsg(s, messages, BATCH, MSG_WAITFORONE, NULL);
		if (n < 0) die("recvmmsg");
		now = now_us();
		if (begin == 0) begin = now;
		else count += (uint64_t)n;
	}
	return (double)count / (now - begin);
}

int main(int argc, char **argv)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < BATCH; i++) {
		pieces[i] = (struct iovec){ .iov_base = frames[i], .iov_len = LONGEST };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &pieces[i], .msg_iovlen = 1 };
	}
	if (argc == 4 && strcmp(argv[1], "send") == 0) {
		int s = packet_socket(argv[2], 0);
		puts("ready");
		fflush(stdout);
		send_all(s, (size_t)atoi(argv[3]));
	} else if (argc == 4 && strcmp(argv[1], "receive") == 0) {
		int s = packet_socket(argv[2], ETH_P_ALL);
		puts("ready");
		fflush(stdout);
		printf("%.4f\n", receive(s, atof(argv[3])));
	} else {
		fprintf(stderr, "usage: packet send IF SIZE | receive IF MS\n");
		return 2;
	}
	return 0;
}
