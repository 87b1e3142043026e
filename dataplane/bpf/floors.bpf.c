// SPDX-License-Identifier: Apache-2.0
//
// What forwarding costs the kernel itself, for `firedoor bench compare`: each frame leaves by the
// other port, and nobody looks at it. One program does so before the kernel makes an skb, the others
// where tc sees it: by handing it to the host at the other port, or by sending it there.
//
// Compiled by `cargo xtask bpf`; the object is committed beside this file.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

// By interface index, the interface that its frames leave by. The loader fills both.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} peers SEC(".maps");

SEC("xdp")
int floor_xdp(struct xdp_md *ctx)
{
	return bpf_redirect_map(&devices, ctx->ingress_ifindex, XDP_DROP);
}

static __always_inline __u32 *peer_of(struct __sk_buff *skb)
{
	__u32 from = skb->ifindex;
	return bpf_map_lookup_elem(&peers, &from);
}

SEC("classifier")
int floor_tcx(struct __sk_buff *skb)
{
	__u32 *to = peer_of(skb);
	return to ? bpf_redirect_peer(*to, 0) : TC_ACT_SHOT;
}

SEC("classifier")
int floor_tcx_egress(struct __sk_buff *skb)
{
	__u32 *to = peer_of(skb);
	return to ? bpf_redirect(*to, 0) : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
