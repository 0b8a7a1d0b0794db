"""Words that say nothing of what an image shows."""

# Function words of English, and the words by which captions speak of themselves ("a picture showing ..."). Words that
# only the image decides stay content words: numbers, colours, and places such as left, right, above, under.
_STOP_WORDS = """
    a an the this that these those some any each every it its they them their he him his she her we us our you your i
    me my who whom whose which what where when how there here
    is are was were be been being am has have had having do does did can could will would may might must shall should
    and or but nor so yet if then than as because while although though
    of to in on at by for with from into onto about up down out off through during among
    not no only just also very too more most such same other another own both all
    picture image photo photograph scene view shows show showing shown see seen sees seeing look looks looking
    contains contain containing depicts depicting pictured
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
