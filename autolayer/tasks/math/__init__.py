"""Mathematics: data sets, finding and checking answers, and the smallest form, `math:arith`."""
