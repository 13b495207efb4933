package main

import (
	"fmt"
	"time"

	"exitgate/firewall"
	"exitgate/policy"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newRulesCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "rules [FILE]",
		Short: "the nftables ruleset of a policy, as text",
		Long: "Prints the ruleset that `exitgate run` installs for the policy, loadable with `nft -f`. It needs no privilege and\n" +
			"resolves no name: of the hosts only those written as addresses are in the sets, and of the resolvers those in `dns`.",
		Example: "  exitgate rules policy.yaml\n  exitgate rules policy.yaml | nft --check -f -",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := env.loadPolicy(env.policyArgument(args))
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(env.stdout, firewall.Render(offlineContents(p, env.now())))
			return err
		},
	}
}

// offlineContents is what the sets hold by the policy alone, before any name is resolved.
func offlineContents(p *policy.Policy, now time.Time) firewall.Contents {
	return firewall.Compile(p, p.DNS.Servers, literals(p, now))
}

// literals are the hosts that the policy names by address.
func literals(p *policy.Policy, now time.Time) []firewall.Endpoint {
	var all []firewall.Endpoint
	for _, n := range p.Names(now) {
		if !n.Literal.IsValid() {
			continue
		}
		for _, port := range n.Ports {
			all = append(all, firewall.Endpoint{Proto: unix.IPPROTO_TCP, Addr: n.Literal, Port: port})
		}
	}
	return all
}
