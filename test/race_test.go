//go:build race

package test

// slowed says that the test itself runs under the race detector, and is no measure of anything's speed.
const slowed = true
