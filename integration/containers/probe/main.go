// Package main is the prober as a program of its own: static, so that it runs in an image that has no C library.
//
//	probe serve | probe do JSON        as package prober says
//
// What it does not do: anything else.
package main

import (
	"os"

	"exitgate/integration/prober"
)

func main() { os.Exit(prober.Main(os.Args[1:])) }
