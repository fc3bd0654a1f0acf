/*
 * What Linux offers for frames between two processes, to compare with:
 *
 *   peers tap SIZE MS        two TAP devices on a bridge: millions of frames per second received (needs root)
 *   peers vde CTL SIZE MS    two clients of the vde_switch whose control directory is CTL: likewise
 *   peers unix COUNT         round trips of 60 bytes over a UNIX socket: "p50 p99 p99.9" in microseconds
 *
 * A frame is one system call on each side, as these interfaces have it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

static const uint8_t receiver_mac[6] = { 2, 0, 0, 0, 0, 2 }, sender_mac[6] = { 2, 0, 0, 0, 0, 1 };
static uint8_t out[2048];

static void frame(const uint8_t *dst, const uint8_t *src)
{
	memset(out, 0x55, sizeof(out));
	memcpy(out, dst, 6);
	memcpy(out + 6, src, 6);
	out[12] = 0x88;
	out[13] = 0xb5;
}

/* Frames per microsecond that come from `in` while a child writes to `to` as fast as it can. */
static double stream(int in, int to, size_t size, double ms)
{
	/* The switch learns where the receiver is. */
	uint8_t all[6] = { 255, 255, 255, 255, 255, 255 };
	frame(all, receiver_mac);
	for (int i = 0; i < 3; i++) {
		if (write(in, out, 60) < 0) die("write");
		usleep(20000);
	}
	frame(receiver_mac, sender_mac);
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child == 0) {
		struct pollfd p = { .fd = to, .events = POLLOUT };
		for (;;) {
			if (write(to, out, size) < 0) poll(&p, 1, 10);
		}
	}
	uint8_t got[2048];
	uint64_t frames = 0;
	double start = now_us(), begin = 0, now;
	struct pollfd p = { .fd = in, .events = POLLIN };
	do {
		ssize_t n = read(in, got, sizeof(got));
		if (n < 0) poll(&p, 1, 10);
		else if ((size_t)n == size && memcmp(got, receiver_mac, 6) == 0) frames++;
		now = now_us();
		if (begin == 0 && now - start > ms * 100) {
			begin = now;
			frames = 0;
		}
	} while (begin == 0 || now - begin < ms * 1e3);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return (double)frames / (now - begin);
}

static void up(int s, const char *name)
{
	struct ifreq r = { 0 };
	snprintf(r.ifr_name, IFNAMSIZ, "%s", name);
	r.ifr_flags = IFF_UP;
	if (ioctl(s, SIOCSIFFLAGS, &r) < 0) die(name);
}

static int tap(int s, const char *bridge)
{
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	if (fd < 0) die("/dev/net/tun");
	struct ifreq r = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	if (ioctl(fd, TUNSETIFF, &r) < 0) die("TUNSETIFF");
	up(s, r.ifr_name);
	struct ifreq b = { 0 };
	snprintf(b.ifr_name, IFNAMSIZ, "%s", bridge);
	if (ioctl(s, SIOCGIFINDEX, &r) < 0) die("SIOCGIFINDEX");
	b.ifr_ifindex = r.ifr_ifindex;
	if (ioctl(s, SIOCBRADDIF, &b) < 0) die("SIOCBRADDIF");
	return fd;
}

static double taps(size_t size, double ms)
{
	char bridge[IFNAMSIZ];
	snprintf(bridge, sizeof(bridge), "ptnetb%d", getpid() % 10000);
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	if (ioctl(s, SIOCBRADDBR, bridge) < 0) die("SIOCBRADDBR");
	int in = tap(s, bridge), to = tap(s, bridge);
	up(s, bridge);
	usleep(200000);
	double mpps = stream(in, to, size, ms);
	close(in);
	close(to);
	struct ifreq r = { 0 };
	snprintf(r.ifr_name, IFNAMSIZ, "%s", bridge);
	ioctl(s, SIOCSIFFLAGS, &r);
	ioctl(s, SIOCBRDELBR, bridge);
	return mpps;
}

/* A port of a vde_switch: its protocol, version 3. The connection on CTL/ctl stays open as long as the port. */
static int vde(const char *dir, int n)
{
	struct {
		uint32_t magic, version, type;
		struct sockaddr_un sock;
		char description[128];
	} __attribute__((packed)) request = { .magic = 0xfeedface, .version = 3, .type = 0 };
	struct sockaddr_un ctl = { .sun_family = AF_UNIX }, data;
	snprintf(ctl.sun_path, sizeof(ctl.sun_path), "%s/ctl", dir);
	int c = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(c, (struct sockaddr *)&ctl, sizeof(ctl)) < 0) die(ctl.sun_path);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	request.sock.sun_family = AF_UNIX;
	snprintf(request.sock.sun_path, sizeof(request.sock.sun_path), "%s/peer%d-%d", dir, getpid(), n);
	if (bind(fd, (struct sockaddr *)&request.sock, sizeof(request.sock)) < 0) die("bind");
	if (write(c, &request, sizeof(request)) < 0) die("write");
	if (read(c, &data, sizeof(data)) <= 0) die("vde_switch");
	if (connect(fd, (struct sockaddr *)&data, sizeof(data)) < 0) die(data.sun_path);
	return fd;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void unix_socket(int count, double pause)
{
	int s[2];
	uint8_t got[60] = { 0 };
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, s) < 0) die("socketpair");
	pid_t child = fork();
	if (child < 0) die("fork");
	if (child == 0) {
		for (;;) {
			if (read(s[1], got, sizeof(got)) <= 0 || write(s[1], got, sizeof(got)) <= 0) _exit(0);
		}
	}
	double *us = malloc((size_t)count * sizeof(*us));
	for (int i = 0; i < count; i++) {
		double start = now_us();
		if (pause > 1000) usleep((useconds_t)pause - 1000);
		while (now_us() < start + pause) continue;
		start = now_us();
		if (write(s[0], got, sizeof(got)) < 0 || read(s[0], got, sizeof(got)) < 0) die("socket");
		us[i] = now_us() - start;
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	qsort(us, (size_t)count, sizeof(*us), by_size);
	printf("%.2f %.2f %.2f\n", us[count / 2], us[(int)(count * 0.99)], us[(int)(count * 0.999)]);
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "tap") == 0) {
		printf("%.4f\n", taps((size_t)atoi(argv[2]), atof(argv[3])));
	} else if (argc == 5 && strcmp(argv[1], "vde") == 0) {
		int in = vde(argv[2], 1), to = vde(argv[2], 2);
		printf("%.4f\n", stream(in, to, (size_t)atoi(argv[3]), atof(argv[4])));
	} else if (argc == 4 && strcmp(argv[1], "unix") == 0) {
		unix_socket(atoi(argv[2]), atof(argv[3]));
	} else {
		fprintf(stderr, "usage: peers tap SIZE MS | vde CTL SIZE MS | unix COUNT PAUSE\n");
		return 2;
	}
	return 0;
}
