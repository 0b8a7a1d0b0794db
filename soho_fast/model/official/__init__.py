"""The authors' released model where it departs from the paper, part by part; a field of `SohoConfig` chooses each.

Presets `official` and `official_vqa` of `SohoConfig` choose them all. Facts are those of the released code
(github.com/researchmm/soho, 95824a8); numbers that its modules compute, on weights and images made by rule, are what
`tests/model/official/` compares with.
"""
