// SPDX-License-Identifier: Apache-2.0
//
// What the frames of a load have in front, as tools/bench/src/traffic/frames.rs writes it, too.
#pragma once
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/types.h>
#include <linux/udp.h>

// "FDLD", in host byte order.
#define MAGIC bpf_htonl(0x46444c44)

struct mark {
	__be32 magic;
	__be64 sequence;
} __attribute__((packed, aligned(2)));

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct mark mark;
} __attribute__((packed, aligned(2)));
