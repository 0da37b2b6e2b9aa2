# Two machines, as the network namespaces $1-a and $1-b with names of their own and a cable between them: `. namespaces.sh NAME NET`, where
# NET is as in 10.99.0. They and all jobs are gone when the shell ends. Needs root and iproute2.
name=$1 net=$2
trap 'kill $(jobs -p) 2>/dev/null || true; ip netns del $name-a; ip netns del $name-b' EXIT
ip netns add $name-a; ip netns add $name-b
ip link add $name-va netns $name-a type veth peer name $name-vb netns $name-b
for side in a b; do
    ip -n $name-$side addr add $net.$([ $side = a ] && echo 1 || echo 2)/24 dev $name-v$side
    ip -n $name-$side link set $name-v$side up
    ip -n $name-$side link set lo up
done

# on SIDE WORDS...: runs a command on a machine.
on() {
    local side=$1; shift
    ip netns exec $name-$side unshare --uts bash -c 'hostname host-$0 && exec "$@"' $side "$@"
}
