//go:build !race

package test

const slowed = false
