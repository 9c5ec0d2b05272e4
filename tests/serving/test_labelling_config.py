"""What is read from a project's labelling configuration."""

import pytest

from boxtune.reports.label_studio_tasks import Control, labelling_config
from boxtune.serving.errors import RequestError
from boxtune.serving.labelling_config import read_config

CONFIG = """
<View><!-- two controls, and a header -->
  <Header value="Mark every animal"/>
  <Choices name="quality" toName="photo"><Choice value="bad"/></Choices>
  <View><RectangleLabels name="boxes" toName="photo" strokeWidth="3">
    <Label value="Cat" background="red"/><Label value="House dog" alias="dog"/><Label value="owl" />
  </RectangleLabels></View>
  <Image name="photo" value="$photo_url" zoom="true"/>
</View>"""


def test_names_and_labels_are_those_of_the_rectangles():
    config = read_config(CONFIG)
    assert config.control == Control("boxes", "photo", "photo_url")
    assert config.labels == ["Cat", "dog", "owl"]  # Label Studio stores an alias, if there is one


def test_labels_are_found_but_for_case_and_width_and_by_alias():
    config = read_config(CONFIG)
    names = ["Cat", "cat", " CAT ", "ｃａｔ", "dog", "House dog", "cow"]
    assert [config.label_for(name) for name in names] == ["Cat", "Cat", "Cat", "Cat", "dog", "dog", None]


def test_a_label_that_equals_the_name_exactly_comes_before_one_in_another_case():
    config = read_config(labelling_config(["cat", "Cat", "CAT"]))
    assert [config.label_for(name) for name in ("cat", "Cat", "CAT")] == ["cat", "Cat", "CAT"]


def test_the_configuration_that_exports_write_is_read():
    config = read_config(labelling_config(["cat", 'a "b" & <c>']))
    assert (config.control, config.labels) == (Control(), ["cat", 'a "b" & <c>'])


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "not XML"),
        ("<View>", "not XML"),
        ("<View/>", "no RectangleLabels"),
        (CONFIG.replace('toName="photo" stroke', 'toName="text" stroke'), "no RectangleLabels"),
        (CONFIG.replace('value="$photo_url"', 'valueList="$photos"'), "such as $image, got ''"),
        ('<View><Image name="i" value="$i"/><RectangleLabels name="l" toName="i" value="$x"/></View>', "have no Label"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>', "DOCTYPE"),
        ("<View>\ud800</View>", "not XML"),
        ("<View>\0</View>", "not XML"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_with_the_reason(xml, reason):
    with pytest.raises(RequestError) as error:
        read_config(xml)
    assert (error.value.status, error.value.field) == (422, "label_config") and reason in error.value.message
